//! Places for sessions: so many on the whole edge, and of these so many over TCP, each of which is a descriptor. One over QUIC needs none.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::DeviceContext;
use crate::budget::State;
use crate::error::DeviceError;
use crate::ids::{AppKey, DeviceKey};
use crate::push::Millis;
use crate::telemetry::{self, Counter, MemoryRefusal, Transport};

/// Places that are taken, over all shards.
#[derive(Debug, Default)]
pub struct Places {
    all: AtomicUsize,
    tcp: AtomicUsize,
}

/// Takes one of `max`. Who only takes another's place always gets in.
fn take(places: &AtomicUsize, max: usize, follows: bool) -> bool {
    let count = |n| (n < max || follows).then_some(n + 1);
    places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
}

fn give(places: &AtomicUsize) {
    places.fetch_sub(1, Ordering::Relaxed);
}

impl DeviceContext {
    /// Takes a place among the sessions of this edge and of the app, if there is one. A device whose older session still counts always gets in: that
    /// one, dead perhaps, leaves by it, so that there is one more for a moment only. From QUIC to TCP it comes without a descriptor, and needs one.
    /// An app's rate of sessions holds for all: whoever it sends away gets in a little later.
    pub(super) fn take_place(
        &self,
        app: &AppKey,
        device: &DeviceKey,
        transport: Transport,
        now: Millis,
    ) -> Result<(), DeviceError> {
        let older = self.directory.look(device).map(|(_, way)| way.transport);
        let follows = older.is_some();
        if !follows && self.budget.state() == State::Over {
            telemetry::add(Counter::MemoryRefused(MemoryRefusal::Sessions), 1);
            return Err(DeviceError::NoMemory);
        }
        let Places { all, tcp } = &self.places;
        if !take(all, self.config.max_sessions, follows) {
            return Err(DeviceError::Exhausted);
        }
        let is_tcp = |transport| transport != Transport::Quic;
        if is_tcp(transport) && !take(tcp, self.config.max_tcp_sessions, older.is_some_and(is_tcp)) {
            give(all);
            return Err(DeviceError::NoDescriptor);
        }
        self.doors.enter(app, follows, now).map_err(|limited| {
            self.give_back(transport);
            DeviceError::Limited { retry_after_ms: limited.retry_after_ms }
        })
    }

    /// Gives it back.
    pub(super) fn give_place(&self, app: &AppKey, transport: Transport) {
        self.give_back(transport);
        self.doors.leave(app);
    }

    fn give_back(&self, transport: Transport) {
        give(&self.places.all);
        if transport != Transport::Quic {
            give(&self.places.tcp);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::directory::Way;
    use crate::ids::{Generation, SessionRef, ShardId};
    use crate::shard::recalls;

    #[test]
    fn sessions_over_tcp_are_bounded_by_themselves_and_all_in_sum() {
        let (mut shard, _) = recalls::tests::shard();
        let context = Arc::get_mut(&mut shard.context).expect("nobody else has it");
        (context.config.max_sessions, context.config.max_tcp_sessions) = (4, 2);
        let app = AppKey::parse("app").expect("valid");
        let [over_quic, over_tcp, other] = [1, 2, 3].map(|n| DeviceKey([n; 16]));
        let takes = |device: &DeviceKey, transport| context.take_place(&app, device, transport, 0);
        for (n, device, transport) in [(1, over_quic, Transport::Quic), (2, over_tcp, Transport::Tls)] {
            assert_eq!(takes(&device, transport), Ok(()));
            let session = SessionRef { generation: Generation(n), slot: n as u32, shard: ShardId(0) };
            assert!(context.directory.enter(device, session, Way { since: 0, transport }).is_ok());
        }
        assert_eq!(takes(&other, Transport::Tcp), Ok(()));
        let counts =
            || (context.places.all.load(Ordering::Relaxed), context.places.tcp.load(Ordering::Relaxed));
        for device in [&other, &over_quic] {
            assert_eq!(takes(device, Transport::Tcp), Err(DeviceError::NoDescriptor));
            assert_eq!(counts(), (3, 2), "who is refused takes nothing");
        }
        // Whose older one leaves a descriptor.
        assert_eq!((takes(&over_tcp, Transport::Tcp), counts()), (Ok(()), (4, 3)));
        assert_eq!(takes(&other, Transport::Quic), Err(DeviceError::Exhausted));
        assert_eq!((takes(&over_tcp, Transport::Quic), counts()), (Ok(()), (5, 3)));
        for transport in [Transport::Tls, Transport::Tcp, Transport::Tcp, Transport::Quic, Transport::Quic] {
            context.give_place(&app, transport);
        }
        assert_eq!(counts(), (0, 0));
    }
}
