//! Waiting before the next attempt: full jitter, as `proto/device.proto` asks of every device, so that a restarted edge is not met
//! by all its devices at once.

use rand::Rng;

use crate::push::Millis;

/// How long to wait before attempt n: a random time in [least, min(cap, base · 2ⁿ)].
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// 0, but for loads.
    least: Millis,
    base: Millis,
    cap: Millis,
    attempt: u32,
}

impl Backoff {
    /// What the protocol prescribes: 1 s to 5 min.
    pub fn standard() -> Self {
        Self { least: 0, base: 1_000, cap: 300_000, attempt: 0 }
    }

    /// For tests and the demo on one machine: 20 ms to 1 s.
    pub fn fast() -> Self {
        Self { least: 0, base: 20, cap: 1_000, attempt: 0 }
    }

    /// A wait before every retry of exactly this many milliseconds at most, whatever the attempt.
    pub fn at_most(milliseconds: Millis) -> Self {
        Self { least: 0, base: milliseconds, cap: milliseconds, attempt: 0 }
    }

    /// Exactly this many milliseconds before every retry, for loads only: devices that were turned away together come again together.
    pub fn every(milliseconds: Millis) -> Self {
        Self { least: milliseconds, base: milliseconds, cap: milliseconds, attempt: 0 }
    }

    /// The wait before the next attempt, which counts from now on.
    pub fn wait(&mut self, rng: &mut impl Rng) -> Millis {
        let top = self.base.saturating_mul(1 << self.attempt.min(40)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        rng.random_range(self.least..=top)
    }

    /// The wait after the peer named a delay: that, plus jitter, so that those who were refused together don't return together.
    pub fn wait_after(&mut self, delay: Millis, rng: &mut impl Rng) -> Millis {
        delay.saturating_add(self.wait(rng))
    }

    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_a_success_resets_them() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::standard();
        for n in 0..64u32 {
            let top = (1_000u64 << n.min(20)).min(300_000);
            assert!(backoff.wait(&mut rng) <= top, "attempt {n}");
        }
        // After many attempts the whole range up to the cap is used.
        assert!((0..200).any(|_| backoff.wait(&mut rng) > 200_000));
        backoff.reset();
        assert!(backoff.wait(&mut rng) <= 1_000);
        assert!(backoff.wait_after(5_000, &mut rng) >= 5_000);
    }

    #[test]
    fn a_load_may_wait_the_same_each_time() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut backoff = Backoff::every(50);
        assert!((0..100).all(|_| backoff.wait(&mut rng) == 50));
        assert_eq!(backoff.wait_after(1_000, &mut rng), 1_050);
    }
}
