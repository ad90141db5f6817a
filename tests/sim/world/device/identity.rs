//! Who a device is to the edge: ids and credentials that it is given, and what it gets on a credential that was revoked.

use mooring::credential::{self, Secret};
use mooring::sim::{SECRET, Stamp};
use mooring::wire::pb::device as pb;

use super::super::MAIL_STEPS;
use super::super::oracle::{Oracle, ensure};
use super::Device;

/// The epoch that a credential says.
pub(super) fn epoch_of(credential: &[u8]) -> Option<u32> {
    let epoch = credential.get(1..5)?;
    Some(u32::from_be_bytes(epoch.try_into().ok()?))
}

/// Of the credential that a Hello shows.
pub(super) fn epoch_shown(hello: &pb::Hello) -> Option<u32> {
    match &hello.identity {
        Some(pb::hello::Identity::Login(login)) => epoch_of(&login.credential),
        _ => None,
    }
}

impl Device {
    /// The epoch of its credential.
    pub(crate) fn epoch(&self) -> Option<u32> {
        epoch_of(self.machine.credential())
    }

    /// Whether a frame of this session may be, as far as it depends on who the device is.
    pub(super) fn check_identity(
        &mut self,
        frame: &pb::to_device::Frame,
        written: Stamp,
        oracle: &Oracle,
    ) -> Result<(), String> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let id = &self.id;
        let revoked = oracle.credentials.get(id).filter(|_| !oracle.is_damaged());
        match frame {
            pb::to_device::Frame::Welcome(welcome) => {
                let registers = session.epoch.is_none();
                let is_its = if registers { welcome.device_id == *id } else { welcome.device_id.is_empty() };
                ensure!(is_its, "{id} is called {:?}, registering: {registers}", welcome.device_id);
                ensure!(
                    !registers || !welcome.credential.is_empty(),
                    "{id} registers, and gets no credential"
                );
                if !welcome.credential.is_empty() {
                    let epoch = epoch_of(&welcome.credential).unwrap_or(0);
                    let secret = Secret::from_bytes(SECRET);
                    let is_good = welcome.credential == credential::issue(&secret, &self.app_key, id, epoch);
                    ensure!(is_good, "{id} is given a credential that isn't one");
                    session.epoch = Some(epoch);
                }
                if let Some((revocation, _)) = revoked.and_then(|revoked| revoked.before(session.hello_at)) {
                    let epoch = session.epoch.unwrap_or(0);
                    ensure!(
                        !revocation.ends(epoch),
                        "{id} is welcome with epoch {epoch}, though {revocation:?} was answered before its Hello"
                    );
                }
            }
            pb::to_device::Frame::Error(error) if error.code() == pb::ErrorCode::Unauthenticated => {
                let is_old = session.epoch.is_some_and(|epoch| epoch + 1 < oracle.epoch);
                ensure!(
                    revoked.is_some() || is_old || oracle.is_damaged(),
                    "{id} is refused with a credential of epoch {:?}, and nobody had revoked it",
                    session.epoch
                );
            }
            pb::to_device::Frame::Error(_) | pb::to_device::Frame::GoAway(_) => {}
            _ => {
                let last = written.step.saturating_sub(MAIL_STEPS);
                if let (Some((revocation, step)), Some(epoch)) =
                    (revoked.and_then(|revoked| revoked.before(last)), session.epoch)
                {
                    ensure!(
                        !revocation.ends(epoch),
                        "{id} of epoch {epoch} is still served at {written:?}: {revocation:?} was answered at step {step}"
                    );
                }
            }
        }
        Ok(())
    }
}
