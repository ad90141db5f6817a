//! Who has to leave so that a newcomer gets a place, among peers that have not shown yet who they are.
//!
//! Each comes from an address, and has a time from which on its place may be given to another. The first to leave is the one whose time comes
//! first among those of the address that takes the most places; of several such addresses, of the one whose time comes first. So who opens
//! many connections and says nothing drives out its own.
//!
//! Every call is a look into ordered trees, however many wait: a storm pays for it at each accept.
//!
//! Rejected: a limit an address. Behind a balancer all come from one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

/// When a place may be given away, then the order of coming.
type Turn = (u64, u64);

/// The peers that wait, each under a key of its own.
#[derive(Debug)]
pub struct Door<K> {
    peers: HashMap<K, (IpAddr, Turn)>,
    /// Those of each address, none empty.
    by_address: HashMap<IpAddr, BTreeMap<Turn, K>>,
    /// How many each address has, and whose turn comes first there: the last one has to make room.
    crowds: BTreeSet<(usize, Reverse<Turn>, IpAddr)>,
    next: u64,
}

impl<K> Default for Door<K> {
    fn default() -> Self {
        Self { peers: HashMap::new(), by_address: HashMap::new(), crowds: BTreeSet::new(), next: 0 }
    }
}

impl<K: Copy + Eq + Hash> Door<K> {
    /// A newcomer, whose place may be given to another from `turn` on: a time, or anything that orders them.
    pub fn enter(&mut self, key: K, address: IpAddr, turn: u64) {
        debug_assert!(!self.peers.contains_key(&key), "a key of its own");
        let turn = (turn, self.next);
        self.next += 1;
        let address = neighbourhood(address);
        self.peers.insert(key, (address, turn));
        self.change(address, |peers| {
            peers.insert(turn, key);
        });
    }

    /// Its place may be given away from another time on.
    pub fn postpone(&mut self, key: K, turn: u64) {
        let Some((address, now)) = self.peers.get_mut(&key) else { return };
        let (address, before) = (*address, *now);
        now.0 = turn;
        self.change(address, |peers| {
            peers.remove(&before);
            peers.insert((turn, before.1), key);
        });
    }

    /// It waits no more. Whether it did.
    pub fn leave(&mut self, key: K) -> bool {
        let Some((address, turn)) = self.peers.remove(&key) else { return false };
        self.change(address, |peers| {
            peers.remove(&turn);
        });
        true
    }

    /// Who has to make room, and from when on.
    pub fn first(&self) -> Option<(K, u64)> {
        let (_, Reverse(turn), address) = self.crowds.last()?;
        let key = self.by_address.get(address)?.get(turn)?;
        Some((*key, turn.0))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut BTreeMap<Turn, K>)) {
        let peers = self.by_address.entry(address).or_default();
        if let Some((turn, _)) = peers.first_key_value() {
            self.crowds.remove(&(peers.len(), Reverse(*turn), address));
        }
        change(peers);
        if let Some((turn, _)) = peers.first_key_value() {
            self.crowds.insert((peers.len(), Reverse(*turn), address));
        } else {
            self.by_address.remove(&address);
        }
    }
}

/// Whose address it is: one host has 2^64 of IPv6, which count as one.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(n: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, n).into()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u8, u64),
        Postpone(usize, u64),
        Leave(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u8..5, 0u64..50).prop_map(|(address, turn)| Step::Enter(address, turn)),
            1 => (0usize..60, 0u64..50).prop_map(|(n, turn)| Step::Postpone(n, turn)),
            1 => (0usize..60).prop_map(Step::Leave),
        ];
        proptest::collection::vec(step, 1..120)
    }

    /// The same, by looking at all of them: key, address, turn.
    fn first_of(peers: &[(usize, u8, u64)]) -> Option<(usize, u64)> {
        let of = |address: u8| peers.iter().filter(move |peer| peer.1 == address);
        let most = peers.iter().map(|peer| of(peer.1).count()).max()?;
        let crowded = peers.iter().filter(|peer| of(peer.1).count() == most);
        crowded.min_by_key(|(key, _, turn)| (*turn, *key)).map(|(key, _, turn)| (*key, *turn))
    }

    proptest! {
        /// Whoever comes, leaves and is given more time: the first to leave is the one that a look at all of them finds.
        #[test]
        fn the_first_of_the_most_crowded_address_makes_room(steps in steps()) {
            let (mut door, mut model) = (Door::default(), Vec::new());
            for (key, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Enter(from, turn) => {
                        door.enter(key, address(from), turn);
                        model.push((key, from, turn));
                    }
                    Step::Postpone(n, turn) => {
                        if let Some(peer) = model.get_mut(n) {
                            peer.2 = turn;
                            door.postpone(peer.0, turn);
                        }
                    }
                    Step::Leave(n) if n < model.len() => {
                        prop_assert!(door.leave(model[n].0));
                        prop_assert!(!door.leave(model.remove(n).0));
                    }
                    Step::Leave(_) => {}
                }
                prop_assert_eq!(door.first(), first_of(&model));
                prop_assert_eq!((door.len(), door.is_empty()), (model.len(), model.is_empty()));
            }
            for (key, ..) in model {
                door.leave(key);
            }
            prop_assert!(door.is_empty() && door.by_address.is_empty() && door.crowds.is_empty());
        }
    }

    #[test]
    fn the_addresses_of_one_host_are_one() {
        let at = |text: &str| neighbourhood(text.parse().expect("an address"));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:127.0.0.1"), address(1));
        assert_ne!(at("127.0.0.1"), at("127.0.0.2"));
    }
}
