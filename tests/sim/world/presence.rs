//! What presence says in the end is what is so: while all devices are there, and once some have gone.

use mooring::client::device::End;

use super::World;
use super::oracle::ensure;

/// Milliseconds within which routers hear of it. Who repeats all its batches just then, one by one, reads their answers first.
const WITHIN_MS: u64 = 60_000;

impl World {
    pub(super) fn check_presence(&mut self) -> Result<(), String> {
        self.hear_who_is_there("all are there")?;
        let now = self.now();
        for device in self.devices.iter_mut().step_by(2) {
            device.disconnect(now, End::Broken, true, &mut self.oracle);
            device.connect_at = u64::MAX;
        }
        self.hear_who_is_there("some have gone")
    }

    fn hear_who_is_there(&mut self, when: &str) -> Result<(), String> {
        let until = self.now() + WITHIN_MS;
        while !self.routers.iter().all(|router| router.says(&self.who_is_there())) {
            ensure!(self.now() < until, "{when}, and presence doesn't say so: {:?}", self.who_is_there());
            self.step()?;
        }
        Ok(())
    }

    /// Each device: app, id, and whether it is connected as it knows itself.
    fn who_is_there(&self) -> Vec<(&str, &str, bool)> {
        self.devices.iter().map(|device| (device.app(), &*device.id, device.is_connected())).collect()
    }
}
