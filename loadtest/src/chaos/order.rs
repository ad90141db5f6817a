//! The order in which devices got messages, held against the one in which these were accepted. Pure.
//!
//! # What is known
//! Each part of a batch (`router.part_targets` targets, by ordinal) is accepted by itself, at a sequence of its own, and on a session the first
//! transmissions of one priority follow these sequences. The answer to a batch tells the first part's and the last one's. Those of parts between
//! rise from one to the next, and lie before the ends of their targets; where nobody says, as parts of other batches, receipts and whole crashes may
//! stand between two of them.
//!
//! # What is asked
//! Is there any choice of the sequences that nobody tells with which all sessions of all devices are in order? Each part begins at the least that it
//! can have, and is moved up behind what came before it on any session, until nothing moves. What would have to be moved beyond the
//! most that it can have came behind something younger.
//!
//! So of batches of one or two parts every exchange is seen. A part between others is seen in a wrong place where that lies outside of its batch, or
//! where another device, or another session, had it in another place: not if all that is known of it is one device that got it within these bounds.

use std::collections::HashMap;
use std::ops::Range;

use super::device_log::DeviceLog;
use super::router_log::{Accepted, Target};

/// Between which sequences a part was accepted, both included.
#[derive(Clone, Copy, Debug)]
struct Part {
    least: u64,
    most: u64,
}

/// What was accepted, part by part.
#[derive(Debug)]
pub(super) struct Order {
    /// Targets of a part.
    part_targets: usize,
    parts: Vec<Part>,
    /// Of each batch with a part whose sequence isn't told, all parts.
    untold: Vec<Range<usize>>,
    /// By message and device: in which part.
    places: HashMap<(u64, u32), usize>,
}

impl Order {
    pub(super) fn new(part_targets: usize) -> Self {
        Self { part_targets, parts: Vec::new(), untold: Vec::new(), places: HashMap::new() }
    }

    /// A batch that was accepted; `devices` and `targets` by ordinal. `false`: its parts can't have been accepted at such sequences.
    pub(super) fn accepted(
        &mut self,
        message: u64,
        answer: Accepted,
        devices: &[u32],
        targets: &[Target],
    ) -> bool {
        let (mut parts, others) = (Vec::new(), targets.len().div_ceil(self.part_targets).max(1) - 1);
        let apart = answer.last.checked_sub(answer.first);
        if !apart.is_some_and(|apart| if others == 0 { apart == 0 } else { apart >= others as u64 }) {
            return false;
        }
        for (number, targets) in targets.chunks(self.part_targets).enumerate() {
            let least = if number == others { answer.last } else { answer.first + number as u64 };
            let most = if number == 0 { answer.first } else { answer.last - (others - number) as u64 };
            let ends = targets.iter().filter_map(|target| match target {
                Target::Ended(end) => Some(end.sequence),
                _ => None,
            });
            let most = ends.map(|end| end.saturating_sub(1)).fold(most, u64::min);
            parts.push(Part { least, most });
        }
        for at in (1..parts.len()).rev() {
            parts[at - 1].most = parts[at - 1].most.min(parts[at].most.saturating_sub(1));
        }
        if parts.iter().any(|part| part.least > part.most) {
            return false;
        }
        let from = self.parts.len();
        if parts.iter().any(|part| part.least < part.most) {
            self.untold.push(from..from + parts.len());
        }
        self.parts.append(&mut parts);
        for (ordinal, (device, target)) in devices.iter().zip(targets).enumerate() {
            if !matches!(target, Target::Refused(_)) {
                self.places.insert((message, *device), from + ordinal / self.part_targets);
            }
        }
        true
    }

    /// Whether a message was accepted for a device.
    pub(super) fn has(&self, message: u64, device: u32) -> bool {
        self.places.contains_key(&(message, device))
    }

    /// Devices, by number, and messages that came to them behind one that was accepted later, on one session and of one priority.
    pub(super) fn reordered(mut self, devices: &[&DeviceLog]) -> Vec<(u32, u64)> {
        let mut runs = Vec::new();
        for (device, log) in (0..).zip(devices) {
            let place = |message| Some((message, *self.places.get(&(message, device))?));
            runs.extend(log.firsts().map(|run| (device, run.filter_map(place).collect::<Vec<_>>())));
        }
        let untold = self.untold.iter().map(Range::len).sum::<usize>();
        let (mut wrong, mut moved) = (Vec::new(), None);
        // In each round one more part at least has its place, or two of them push each other.
        for _ in 0..=untold {
            moved = None;
            for batch in &self.untold {
                let mut newest = 0;
                for part in &mut self.parts[batch.clone()] {
                    // Not beyond the most: those rise too.
                    part.least = part.least.max(newest + 1);
                    newest = part.least;
                }
            }
            for (device, run) in &mut runs {
                let mut newest = 0;
                run.retain(|(message, place)| {
                    let part = &mut self.parts[*place];
                    if part.most <= newest {
                        wrong.push((*device, *message));
                        return false;
                    }
                    if part.least <= newest {
                        part.least = newest + 1;
                        moved = Some((*device, *message));
                    }
                    newest = part.least;
                    true
                });
            }
            if moved.is_none() {
                return wrong;
            }
        }
        if wrong.is_empty() {
            wrong.extend(moved);
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use mooring::push::Refusal;
    use mooring::wire::pb::device::Push;

    use super::super::router_log::End;
    use super::*;

    /// In parts of two: message, first and last sequence, devices.
    type Made<'a> = (u64, u64, u64, &'a [u32]);

    fn answer(first: u64, last: u64) -> Accepted {
        Accepted { first, last, at: 0, expires_at: 0 }
    }

    fn order(batches: &[Made<'_>]) -> Order {
        let mut order = Order::new(2);
        for (message, first, last, devices) in batches {
            let targets = vec![Target::Open; devices.len()];
            assert!(order.accepted(*message, answer(*first, *last), devices, &targets));
        }
        order
    }

    /// What came to one device on its sessions.
    fn device(sessions: &[&[u64]]) -> DeviceLog {
        let mut log = DeviceLog::default();
        for messages in sessions {
            log.welcomed();
            for message_id in *messages {
                log.came(&Push { message_id: *message_id, ..Push::default() }, 1, true);
            }
        }
        log
    }

    /// What is out of order, if this came to the devices from number 0 on, each on one session.
    fn reordered(order: Order, came: &[&[u64]]) -> Vec<(u32, u64)> {
        let devices: Vec<_> = came.iter().map(|messages| device(&[messages])).collect();
        order.reordered(&devices.iter().collect::<Vec<_>>())
    }

    const NONE: [(u32, u64); 0] = [];

    #[test]
    fn order_is_that_of_acceptance_on_each_session_and_priority() {
        let batches: [Made<'_>; 3] = [(1, 10, 10, &[0]), (2, 20, 20, &[0]), (3, 30, 30, &[0])];
        assert_eq!(reordered(order(&batches), &[&[1, 2, 3]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[3, 1]]), [(0, 1)]);
        assert_eq!(reordered(order(&batches), &[&[3, 1, 2]]), [(0, 1), (0, 2)]);
        // Of batches that nobody knows something else is wrong.
        assert_eq!(reordered(order(&batches), &[&[3, 4]]), NONE);
        // A new session begins with the oldest.
        assert_eq!(order(&batches).reordered(&[&device(&[&[3], &[1, 3]])]), NONE);
        // Of another priority.
        let mut log = device(&[&[3]]);
        log.came(&Push { message_id: 2, priority: 1, ..Push::default() }, 1, false);
        assert_eq!(order(&batches).reordered(&[&log]), NONE);
    }

    #[test]
    fn another_batch_may_stand_between_two_parts() {
        // Message 2 was accepted between the parts of message 1: behind devices 0 and 1, before devices 2 and 3.
        let batches: [Made<'_>; 2] = [(1, 10, 20, &[0, 1, 2, 3]), (2, 15, 15, &[0, 2])];
        assert_eq!(reordered(order(&batches), &[&[1, 2], &[1], &[2, 1], &[1]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[2, 1], &[1], &[2, 1], &[1]]), [(0, 1)]);
        assert_eq!(reordered(order(&batches), &[&[1, 2], &[1], &[1, 2], &[1]]), [(2, 2)]);
    }

    #[test]
    fn a_part_that_was_taken_after_a_crash_is_as_young_as_that() {
        // Messages 2 and 3 came while message 1 was half taken.
        let batches: [Made<'_>; 3] = [(1, 10, 90, &[0, 1, 2, 3]), (2, 50, 50, &[2]), (3, 60, 60, &[0, 2])];
        assert_eq!(reordered(order(&batches), &[&[1, 3], &[], &[2, 3, 1]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[1, 3], &[], &[2, 1, 3]]), [(2, 3)]);
    }

    #[test]
    fn a_part_between_others_is_within_its_batch() {
        let devices = &[0, 1, 2, 3, 4, 5];
        // Device 2 is in the second part of three.
        let batches: [Made<'_>; 4] =
            [(1, 10, 20, devices), (2, 9, 9, &[2]), (3, 15, 15, &[2]), (4, 21, 21, &[2])];
        assert_eq!(reordered(order(&batches), &[&[], &[], &[2, 1, 3, 4]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[2, 3, 1, 4]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[1, 2]]), [(2, 2)]);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[4, 1]]), [(2, 1)]);
        // Right behind the first part, and right before the last one.
        let close: [Made<'_>; 3] = [(1, 10, 20, devices), (2, 11, 11, &[2]), (3, 19, 19, &[2])];
        assert_eq!(reordered(order(&close), &[&[], &[], &[1, 2]]), [(2, 2)]);
        assert_eq!(reordered(order(&close), &[&[], &[], &[3, 1]]), [(2, 1)]);
    }

    #[test]
    fn a_part_between_others_has_one_place_for_all_its_devices_and_on_all_sessions() {
        let batches: [Made<'_>; 2] = [(1, 10, 20, &[0, 1, 2, 3, 4, 5]), (2, 15, 15, &[2, 3])];
        assert_eq!(reordered(order(&batches), &[&[], &[], &[1, 2], &[1, 2]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[2, 1], &[2, 1]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[1, 2], &[2, 1]]).len(), 1);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[2, 1], &[1, 2]]).len(), 1);
        let twice = device(&[&[1, 2], &[2, 1]]);
        assert_eq!(order(&batches).reordered(&[&device(&[]), &device(&[]), &twice]).len(), 1);
    }

    #[test]
    fn parts_between_others_rise_within_their_batch() {
        // Devices 2 and 3 are in the second part of four, devices 4 and 5 in the third one.
        let batches: [Made<'_>; 2] = [(1, 10, 40, &[0, 1, 2, 3, 4, 5, 6, 7]), (2, 25, 25, &[2, 4])];
        assert_eq!(reordered(order(&batches), &[&[], &[], &[1, 2], &[], &[2, 1]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[1, 2], &[], &[1, 2]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[2, 1], &[], &[2, 1]]), NONE);
        assert_eq!(reordered(order(&batches), &[&[], &[], &[2, 1], &[], &[1, 2]]), [(4, 2)]);
    }

    #[test]
    fn two_parts_between_others_do_not_stand_behind_each_other() {
        let (one, two) = (&[0, 1, 2, 3, 4, 5], &[6, 7, 3, 2, 8, 9]);
        for last in [30, 30_000] {
            let batches: [Made<'_>; 2] = [(1, 10, last, one), (2, 11, last + 1, two)];
            assert_eq!(reordered(order(&batches), &[&[], &[], &[1, 2], &[1, 2]]), NONE);
            assert_eq!(reordered(order(&batches), &[&[], &[], &[2, 1], &[2, 1]]), NONE);
            assert_eq!(reordered(order(&batches), &[&[], &[], &[1, 2], &[2, 1]]).len(), 1, "{last}");
        }
    }

    #[test]
    fn an_end_is_behind_its_part_and_those_before() {
        let end = |sequence| Target::Ended(End { failure: None, sequence, told: 0, sent: 0 });
        // In the third part of four.
        let mut targets = [Target::Open; 8];
        targets[4] = end(18);
        let devices = [0, 1, 2, 3, 4, 5, 6, 7];
        for device in [2, 4] {
            let mut order = order(&[(2, 18, 18, &[device])]);
            assert!(order.accepted(1, answer(10, 40), &devices, &targets));
            let mut came: [&[u64]; 8] = [&[]; 8];
            came[device as usize] = &[2, 1];
            assert_eq!(reordered(order, &came), [(device, 1)]);
        }
        targets[4] = end(12);
        assert!(!Order::new(2).accepted(1, answer(10, 40), &devices, &targets));
        targets[4] = end(13);
        assert!(Order::new(2).accepted(1, answer(10, 40), &devices, &targets));
    }

    #[test]
    fn an_answer_has_a_sequence_for_each_part() {
        let accepted = |targets: usize, first, last| {
            let devices: Vec<_> = (0..targets as u32).collect();
            Order::new(2).accepted(1, answer(first, last), &devices, &vec![Target::Open; targets])
        };
        assert!(accepted(2, 10, 10) && accepted(3, 10, 11) && accepted(6, 10, 12));
        assert!(!accepted(2, 10, 11), "one part at two places");
        assert!(!accepted(3, 10, 10), "two parts at one place");
        assert!(!accepted(6, 10, 11), "three parts at two places");
        assert!(!accepted(4, 11, 10), "the last one before the first one");
    }

    #[test]
    fn it_has_what_was_accepted_and_not_what_was_refused() {
        let mut order = Order::new(2);
        let targets = [Target::Open, Target::Refused(Refusal::Offline), Target::Open];
        assert!(order.accepted(1, answer(10, 12), &[4, 5, 6], &targets));
        assert!(order.has(1, 4) && !order.has(1, 5) && order.has(1, 6) && !order.has(2, 4));
    }
}
