//! The order of what a device gets.

use std::collections::BTreeMap;

use super::{Oracle, ensure};

impl Oracle {
    /// First transmissions of one priority follow the order of acceptance, on each session.
    pub(super) fn check_order(&self) -> Result<(), String> {
        // Where it came from, if that is the only place.
        let mut places: BTreeMap<(&str, u64), Vec<u64>> = BTreeMap::new();
        for (id, answer) in &self.answers {
            let sent = &self.batches[id];
            for (ordinal, device) in (0u32..).zip(&sent.targets) {
                if !answer.refused.contains_key(&ordinal) {
                    let places = places.entry((device, sent.message)).or_default();
                    places.push(answer.sequence);
                    if answer.first_sequence != answer.sequence {
                        // Somewhere between.
                        places.push(answer.first_sequence);
                    }
                }
            }
        }
        for id in self.rejected.keys().filter(|_| self.forgets()) {
            // Another copy of it may have been taken.
            let sent = &self.batches[id];
            for device in &sent.targets {
                places.entry((device, sent.message)).or_default().extend([0, 0]);
            }
        }
        for session in &self.sessions {
            for high in [false, true] {
                let mut last = (0, 0);
                for (message, _) in session.firsts.iter().filter(|(_, is_high)| *is_high == high) {
                    match places.get(&(session.device.as_str(), *message)).map(Vec::as_slice) {
                        // Lost with its record, and too late when it was repeated.
                        None | Some([]) if self.is_damaged() => {}
                        None | Some([]) => {
                            return Err(format!("{} got {message}, which nobody sent it", session.device));
                        }
                        Some([one]) => {
                            ensure!(
                                *one > last.0,
                                "{}: message {message} (accepted at {one}) came after {} (at {}): {:?}",
                                session.device,
                                last.1,
                                last.0,
                                session.firsts
                            );
                            last = (*one, *message);
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        Ok(())
    }
}
