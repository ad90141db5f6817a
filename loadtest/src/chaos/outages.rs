//! When a part of the ring did not work because we broke it: lateness counts only the rest of the time.

/// Milliseconds.
type Millis = u64;

/// Stretches of time; they may overlap.
#[derive(Clone, Default, Debug)]
pub(super) struct Outages {
    past: Vec<(Millis, Millis)>,
    /// How many causes last at present, and since when the first of them does.
    now: (u32, Millis),
}

impl Outages {
    pub(super) fn begin(&mut self, at: Millis) {
        if self.now.0 == 0 {
            self.now.1 = at;
        }
        self.now.0 += 1;
    }

    pub(super) fn end(&mut self, at: Millis) {
        self.now.0 = self.now.0.saturating_sub(1);
        if self.now.0 == 0 {
            self.past.push((self.now.1, at));
        }
    }

    /// One that is over, or whose end is known.
    pub(super) fn add(&mut self, from: Millis, to: Millis) {
        self.past.push((from, to));
    }

    /// Milliseconds between the two in which all worked, here and there.
    pub(super) fn whole(&self, other: &Self, from: Millis, to: Millis) -> Millis {
        let open = |o: &Self| (o.now.0 > 0).then_some((o.now.1, Millis::MAX));
        let all = self.past.iter().chain(&other.past).copied().chain(open(self)).chain(open(other));
        let mut broken: Vec<_> = all.map(|(a, b)| (a.max(from), b.min(to))).filter(|(a, b)| a < b).collect();
        broken.sort_unstable();
        let (mut whole, mut at) = (0, from);
        for (begin, end) in broken {
            whole += begin.saturating_sub(at);
            at = at.max(end);
        }
        whole + to.saturating_sub(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_all_worked_counts() {
        let mut edge = Outages::default();
        edge.begin(10);
        edge.begin(12);
        edge.end(15);
        edge.end(20);
        let mut device = Outages::default();
        device.add(18, 30);
        assert_eq!(edge.whole(&device, 0, 40), 10 + 10);
        assert_eq!(edge.whole(&device, 12, 19), 0);
        assert_eq!(edge.whole(&Outages::default(), 12, 19), 0);
        assert_eq!(edge.whole(&Outages::default(), 30, 20), 0);
        edge.begin(35);
        assert_eq!(edge.whole(&device, 0, 40), 10 + 5);
    }
}
