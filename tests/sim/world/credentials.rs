//! Operators who revoke credentials of devices, let them in again, and raise the epoch of all; in some runs.

use mooring::credential::{InstallSecret, Revocation};
use mooring::push::Rejection;
use mooring::sim::{Edge, Plan};
use mooring::store::Command;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::World;
use super::chance::once_in;
use super::oracle::ensure;

/// See the module.
pub(crate) struct Credentials {
    /// Some devices of this run register.
    happens: bool,
    asked: Option<Asked>,
}

/// A revocation that has no answer.
struct Asked {
    device: usize,
    reply: oneshot::Receiver<Result<Revocation, Rejection>>,
}

/// What was revoked of one device, as operators know it.
#[derive(Default)]
pub(crate) struct Revoked {
    /// How often it was asked for: also what has no answer may hold.
    asked: u32,
    /// The newest answer, at which step it came, and how often it had been asked for by then.
    answered: Option<(Revocation, u64, u32)>,
}

impl Revoked {
    /// What holds of what was answered up to a step, and when it was. Old credentials stay out for ever; who is locked out may have been let in
    /// again by a revocation that has no answer.
    pub(crate) fn before(&self, step: u64) -> Option<(Revocation, u64)> {
        let (revocation, at, asked) = self.answered.filter(|(_, at, _)| *at < step)?;
        let locked = revocation.locked && asked == self.asked;
        Some((Revocation { locked, ..revocation }, at))
    }

    /// The device may have to stay out.
    fn may_be_locked(&self) -> bool {
        self.answered.is_none_or(|(revocation, _, asked)| revocation.locked || asked < self.asked)
    }
}

impl Credentials {
    /// Perhaps, if `may` be.
    pub(crate) fn new(plan: &mut Plan, may: bool, rng: &mut SmallRng) -> Self {
        let happens = rng.random() && may;
        if happens && once_in(rng, 3) {
            plan.registrations_per_s = 1;
        }
        Self { happens, asked: None }
    }

    /// Of a device that registers.
    pub(crate) fn install_secret(&self, rng: &mut SmallRng) -> Option<InstallSecret> {
        let registers = self.happens && rng.random_ratio(3, 4);
        registers.then(|| InstallSecret::from_bytes(&rng.random::<[u8; 16]>()).expect("not all zero"))
    }
}

impl World {
    /// Operators revoke one after the other, and wait for answers. In the end they let everybody in.
    pub(super) fn revoke_credentials(&mut self) {
        self.hear_of_revocation();
        let Some(edge) = self.edge.as_ref().filter(|_| self.credentials.happens) else { return };
        if self.credentials.asked.is_some() {
            return;
        }
        let mut registering = (0..self.devices.len()).filter(|number| self.devices[*number].registers);
        let (device, allow_registration) = if self.is_calm {
            let known = &self.oracle.credentials;
            let may_be_locked = |number: &usize| {
                known.get(&self.names[*number]).is_some_and(super::credentials::Revoked::may_be_locked)
            };
            let Some(device) = registering.find(may_be_locked) else { return };
            (device, true)
        } else {
            let rng = &mut self.chances.credentials;
            if !once_in(rng, 80) {
                return;
            }
            let registering: Vec<usize> = registering.collect();
            if registering.is_empty() {
                return;
            }
            (registering[rng.random_range(0..registering.len())], !once_in(rng, 3))
        };
        let (reply, answer) = oneshot::channel();
        let (key, epoch) = (self.devices[device].key, self.plan.epoch);
        let command = Command::RevokeCredentials { device: key, epoch, allow_registration, reply };
        if edge.submit(command).is_ok() {
            let name = self.names[device].clone();
            self.note(format_args!("credentials of {name} are to be revoked, back in: {allow_registration}"));
            self.oracle.credentials.entry(name).or_default().asked += 1;
            self.credentials.asked = Some(Asked { device, reply: answer });
        }
    }

    fn hear_of_revocation(&mut self) {
        let Some(asked) = &mut self.credentials.asked else { return };
        let answer = match asked.reply.try_recv() {
            Err(TryRecvError::Empty) => return,
            // The edge has died, or has no room.
            Err(TryRecvError::Closed) => None,
            Ok(answer) => answer.ok(),
        };
        let name = self.names[asked.device].clone();
        self.credentials.asked = None;
        self.note(format_args!("{name}: {answer:?}"));
        let step = self.oracle.step;
        if let (Some(revocation), Some(known)) = (answer, self.oracle.credentials.get_mut(&name)) {
            known.answered = Some((revocation, step, known.asked));
        }
    }

    /// A new configuration, now and then: once everybody whose credential is of an issuer has one of the present epoch.
    pub(super) fn raise_epoch(&mut self) {
        let epoch = self.plan.epoch;
        let are_renewed =
            |world: &Self| world.devices.iter().all(|one| one.registers || one.epoch() == Some(epoch));
        if !self.is_calm
            && self.credentials.happens
            && once_in(&mut self.chances.credentials, 3)
            && are_renewed(self)
        {
            self.plan.epoch += 1;
            self.oracle.epoch = self.plan.epoch;
            self.trace.note(self.now(), format_args!("the apps' epoch is {}", epoch + 1));
        }
    }

    /// What was answered holds after every start.
    pub(super) fn check_revocations(&self, edge: &Edge) -> Result<(), String> {
        for device in &self.devices {
            let known = self.oracle.credentials.get(&device.id).filter(|_| !self.oracle.is_damaged());
            if let Some((answered, _)) = known.and_then(|known| known.before(u64::MAX)) {
                let now = edge.revocation(&device.key);
                ensure!(
                    now.min_epoch >= answered.min_epoch && (now.locked || !answered.locked),
                    "{}: {answered:?} was answered, and after a start it is {now:?}",
                    device.id
                );
            }
        }
        Ok(())
    }
}
