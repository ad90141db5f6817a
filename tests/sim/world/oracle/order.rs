//! The order of what a device gets.

use std::collections::BTreeMap;

use super::{Answer, Oracle, ensure};

/// The first and the last sequence at which a target may have been accepted.
type Place = (u64, u64);

/// By ordinal: the place of each target. The answer tells where the first part stands and the last one; the others lie between, one behind the other.
/// Where nobody knows how many targets a part has, each may be of any.
fn places_in(targets: &[String], part_targets: Option<usize>, answer: &Answer) -> Vec<Place> {
    let Some(part_targets) = part_targets else {
        return vec![(answer.first_sequence, answer.sequence); targets.len()];
    };
    let named = |device| targets.iter().filter(|one| *one == device).count();
    // Who stands in it more than once is in its first part, whatever that takes.
    let (repeated, others): (Vec<usize>, Vec<usize>) =
        (0..targets.len()).partition(|at| targets.len() > part_targets && named(&targets[*at]) > 1);
    let first = part_targets.max(repeated.len());
    let last = targets.len().saturating_sub(first).div_ceil(part_targets);
    let mut places = vec![(0, 0); targets.len()];
    for (position, ordinal) in repeated.into_iter().chain(others).enumerate() {
        let part = (position + part_targets).saturating_sub(first) / part_targets;
        let from = if part == last { answer.sequence } else { answer.first_sequence + part as u64 };
        let behind = (last - part) as u64;
        let to = if part == 0 { answer.first_sequence } else { answer.sequence.saturating_sub(behind) };
        places[ordinal] = (from, to);
    }
    places
}

impl Oracle {
    /// First transmissions of one priority follow the order of acceptance, on each session.
    pub(super) fn check_order(&self) -> Result<(), String> {
        let mut places: BTreeMap<(&str, u64), Vec<Place>> = BTreeMap::new();
        for (id, answer) in &self.answers {
            let sent = &self.batches[id];
            let of_batch = places_in(&sent.targets, self.part_targets, answer);
            for ((ordinal, device), place) in (0u32..).zip(&sent.targets).zip(of_batch) {
                if !answer.refused.contains_key(&ordinal) {
                    places.entry((device, sent.message)).or_default().push(place);
                }
            }
        }
        for id in self.rejected.keys().filter(|_| self.forgets()) {
            // Another copy of it may have been taken.
            let sent = &self.batches[id];
            for device in &sent.targets {
                places.entry((device, sent.message)).or_default().extend([(0, 0), (0, 0)]);
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
                        Some(&[(from, to)]) => {
                            ensure!(
                                to > last.0,
                                "{}: message {message} (accepted from {from} to {to}) came after {} (not before {}): {:?}",
                                session.device,
                                last.1,
                                last.0,
                                session.firsts
                            );
                            // Of a part between others it is the earliest that it can be.
                            last = (from.max(last.0 + 1), *message);
                        }
                        // It may have come from any of them.
                        Some(_) => {}
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Seen, Sent};
    use super::*;

    /// In parts of two: message 1 for six devices, accepted from 10 to 20, and message 2 for all of them, at 15. What `device` gets.
    fn came(device: &str, messages: &[u64]) -> Result<(), String> {
        let mut oracle = Oracle { part_targets: Some(2), ..Oracle::default() };
        for (message, sequences, targets) in
            [(1, (10, 20), "abcdef"), (2, (15, 15), "af"), (3, (11, 11), "c")]
        {
            let sent = Sent {
                message,
                targets: targets.chars().map(String::from).collect(),
                online_only: false,
                returns: false,
                collapse_key: String::new(),
                accounts: Vec::new(),
            };
            let answer = Answer {
                first_sequence: sequences.0,
                sequence: sequences.1,
                accepted: targets.len() as u32,
                refused: BTreeMap::new(),
                accepted_at: 0,
                expires_at: 0,
            };
            oracle.batches.insert(message.to_string(), sent);
            oracle.answers.insert(message.to_string(), answer);
        }
        let firsts = messages.iter().map(|message| (*message, false)).collect();
        oracle.sessions.push(Seen { device: device.into(), firsts });
        oracle.check_order()
    }

    #[test]
    fn parts_are_of_so_many_targets_but_who_stands_twice_is_in_the_first_one() {
        let answer = Answer {
            first_sequence: 10,
            sequence: 20,
            accepted: 0,
            refused: BTreeMap::new(),
            accepted_at: 0,
            expires_at: 0,
        };
        let places = |targets: &str| {
            let targets: Vec<_> = targets.chars().map(String::from).collect();
            places_in(&targets, Some(2), &answer)
        };
        let (first, between, last) = ((10, 10), (11, 19), (20, 20));
        assert_eq!(places("abcde"), [first, first, between, between, last]);
        assert_eq!(places("abcda"), [first, between, between, last, first]);
        assert_eq!(places("cabbaa"), [last, first, first, first, first, first]);
        let one = Answer { first_sequence: 20, ..answer.clone() };
        assert_eq!(places_in(&["a".to_owned(), "a".to_owned()], Some(2), &one), [last, last]);
        assert_eq!(places_in(&["a".to_owned(), "b".to_owned()], None, &answer), [(10, 20), (10, 20)]);
    }

    #[test]
    fn the_order_is_that_of_parts() {
        assert_eq!(came("a", &[1, 2]), Ok(()));
        assert!(came("a", &[2, 1]).is_err(), "the first part was accepted before");
        assert_eq!(came("f", &[2, 1]), Ok(()));
        assert!(came("f", &[1, 2]).is_err(), "the last part was accepted after that");
        // No part between others stands where the first one could.
        assert_eq!(came("c", &[3, 1]), Ok(()));
        assert!(came("c", &[1, 3]).is_err());
    }
}
