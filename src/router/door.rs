//! Who may come in: peers that have shown no certificate yet have places of their own, so that they never take those of routers.
//!
//! A newcomer always gets such a place. If all are taken, the one who has waited longest leaves for it, among those of the address that takes
//! the most ([`crate::machine::door`]): a peer that opens connections and says nothing only drives out its own. A router's handshake takes a few
//! round trips; to drive that out somebody has to open [`limits::ROUTER_HANDSHAKES`] connections in that time from as many addresses, or from the
//! router's own. Who turns out to be a router of this edge gives the place back for one among [`limits::ROUTER_LINKS`]; who does not keeps it until
//! it is told so (`stranger`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::LinkEnd;
use crate::limits;
use crate::machine::door;

/// Of one listener.
#[derive(Debug)]
pub(super) struct Door {
    waiting: Mutex<Waiting>,
    links: Arc<Semaphore>,
}

/// Those that are no routers yet, each with its number: they leave in the order of coming.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    peers: door::Door<u64>,
    /// Dropped: it has to leave.
    stays: HashMap<u64, oneshot::Sender<()>>,
}

/// A place before the certificate is known, then one among the links. Given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    door: Arc<Door>,
    number: u64,
    stay: oneshot::Receiver<()>,
    link: Option<OwnedSemaphorePermit>,
}

impl Door {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), links: Arc::new(Semaphore::new(limits::ROUTER_LINKS)) })
    }

    /// A place for a newcomer, perhaps at the cost of another.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Place {
        let mut waiting = self.waiting();
        if waiting.peers.len() >= limits::ROUTER_HANDSHAKES {
            waiting.evict();
        }
        let (sender, stay) = oneshot::channel();
        let number = waiting.next;
        waiting.next += 1;
        waiting.peers.enter(number, address, number);
        waiting.stays.insert(number, sender);
        Place { door: Arc::clone(self), number, stay, link: None }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// The oldest of the address that has the most.
    fn evict(&mut self) {
        if let Some((number, _)) = self.peers.first() {
            self.leave(number);
        }
    }

    fn leave(&mut self, number: u64) {
        self.peers.leave(number);
        self.stays.remove(&number);
    }
}

impl Place {
    /// Waits until this place is needed for another.
    pub(super) async fn evicted(&mut self) {
        // Nothing is ever sent: the other end is dropped.
        (&mut self.stay).await.ok();
    }

    /// The peer's certificate names a router of this edge.
    pub(super) fn admit(&mut self) -> Result<(), LinkEnd> {
        self.door.waiting().leave(self.number);
        let link = Arc::clone(&self.door.links).try_acquire_owned().map_err(|_full| LinkEnd::Full)?;
        self.link = Some(link);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.waiting().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt;

    use super::*;

    fn address(n: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, n).into()
    }

    fn is_evicted(place: &mut Place) -> bool {
        place.evicted().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_of_the_most_crowded_address_makes_room() {
        let door = Door::new();
        let mut quiet = door.enter(address(1));
        let mut crowd: Vec<_> = (1..limits::ROUTER_HANDSHAKES).map(|_| door.enter(address(2))).collect();
        assert!(!is_evicted(&mut quiet) && !crowd.iter_mut().any(is_evicted));
        let mut newcomer = door.enter(address(3));
        assert!(is_evicted(&mut crowd[0]) && !crowd[1..].iter_mut().any(is_evicted));
        let mut of_the_crowd = door.enter(address(2));
        assert!(is_evicted(&mut crowd[1]) && !is_evicted(&mut of_the_crowd));
        assert!(!is_evicted(&mut quiet) && !is_evicted(&mut newcomer));
        assert_eq!(door.waiting().peers.len(), limits::ROUTER_HANDSHAKES);
        drop((crowd, of_the_crowd, quiet));
        assert_eq!(door.waiting().peers.len(), 1);
    }

    #[test]
    fn who_is_admitted_takes_no_place_of_those_that_wait() {
        let door = Door::new();
        let mut links: Vec<_> = (0..limits::ROUTER_LINKS).map(|_| door.enter(address(1))).collect();
        assert!(links.iter_mut().all(|place| place.admit().is_ok()));
        assert!(door.waiting().peers.is_empty());
        assert!(matches!(door.enter(address(1)).admit(), Err(LinkEnd::Full)));
        links.pop();
        assert!(door.enter(address(1)).admit().is_ok());
    }
}
