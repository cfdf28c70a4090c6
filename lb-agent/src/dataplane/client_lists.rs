//! Which clients may use restricted frontends: `SOURCE_RANGES*`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{ApplyError, ClientList, FamilyMaps, MapError};
use crate::model::{Cidr, Family};

/// The lists of clients in `SOURCE_RANGES*`. Which of its lists a service port's frontends are to name, the service port
/// knows.
///
/// ```text
/// enter ──> in force ──> superseded ──> resting ──> over ──> gone, and the edition is free
///   │           ^            │             │          ^
///   │           └────────────┴─────────────┘          │
///   └── an error: nobody has seen it ─────────────────┘
/// ```
///
/// A list that a frontend names never changes. It is superseded when its service port wants another one, and rests when no
/// frontend in the maps names it any more, for as long as a program may run that has read such a frontend. Meanwhile it is
/// whole, and is in force again at once if it is wanted again.
#[derive(Debug)]
pub(super) struct ClientLists<A> {
    capacity: usize,
    /// How many networks the map holds.
    networks: usize,
    lists: BTreeMap<ClientList, List<A>>,
    /// Those that a frontend may still name.
    superseded: BTreeSet<ClientList>,
    /// Those whose networks are to be removed.
    over: BTreeSet<ClientList>,
    pub(super) writes: u64,
}

#[derive(Debug)]
struct List<A> {
    /// What of it the map holds.
    networks: BTreeSet<Cidr<A>>,
    /// Since no frontend names it: until when it is left alone.
    rests_until: Option<Instant>,
}

impl<A: Family> ClientLists<A> {
    /// An empty table.
    pub(super) fn new(capacity: u32) -> Self {
        let (lists, superseded, over) = Default::default();
        Self { capacity: capacity as usize, networks: 0, lists, superseded, over, writes: 0 }
    }

    /// Takes over what the map holds. `named` are the lists that frontends name; one that has no networks is there as well:
    /// nobody is in it, until no frontend names it.
    pub(super) fn adopt(&mut self, networks: Vec<(ClientList, Cidr<A>)>, named: &BTreeSet<ClientList>) {
        for list in named {
            self.list(*list);
        }
        for (list, network) in networks {
            self.networks += usize::from(self.list(list).networks.insert(network));
            if !named.contains(&list) {
                self.over.insert(list);
            }
        }
    }

    fn list(&mut self, list: ClientList) -> &mut List<A> {
        self.lists.entry(list).or_insert(List { networks: BTreeSet::new(), rests_until: None })
    }

    /// The services that have lists.
    pub(super) fn services(&self) -> BTreeSet<u32> {
        self.lists.keys().map(|list| list.service).collect()
    }

    /// Whether a service has lists.
    pub(super) fn has(&self, service: u32) -> bool {
        self.lists.range(ClientList::all_of(service)).next().is_some()
    }

    /// How many more networks there is room for.
    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.networks)
    }

    /// The networks of a list.
    pub(super) fn of(&self, list: ClientList) -> impl Iterator<Item = Cidr<A>> {
        self.lists.get(&list).into_iter().flat_map(|list| &list.networks).copied()
    }

    /// How many networks the map holds.
    pub(super) fn count(&self) -> usize {
        self.networks
    }

    /// Whether the map holds a network.
    pub(super) fn holds(&self, (list, network): (ClientList, Cidr<A>)) -> bool {
        self.lists.get(&list).is_some_and(|content| content.networks.contains(&network))
    }

    /// All networks that the map holds.
    pub(super) fn all(&self) -> impl Iterator<Item = (ClientList, Cidr<A>)> {
        self.lists.iter().flat_map(|(list, content)| content.networks.iter().map(|network| (*list, *network)))
    }

    /// A list of a service that is just these networks, which are ascending.
    fn find(&self, service: u32, wanted: &[Cidr<A>]) -> Option<ClientList> {
        let mut lists = self.lists.range(ClientList::all_of(service));
        lists.find(|(_, content)| content.networks.iter().eq(wanted)).map(|(list, _)| *list)
    }

    /// Makes sure that there is room for a list beside those that are there. `in_force`: whether frontends of the service
    /// are there already.
    pub(super) fn make_room(&self, service: u32, wanted: &[Cidr<A>], in_force: bool) -> Result<(), ApplyError> {
        let (table, room) = (A::TABLES.source_ranges, self.room());
        if wanted.len() <= room || self.find(service, wanted).is_some() {
            return Ok(());
        }
        let beside = ApplyError::NoRoomBeside { table, clients: wanted.len(), room };
        Err(if in_force { beside } else { ApplyError::Full { table } })
    }

    /// Finds the list of these networks, which are ascending, among those of a service, or enters it.
    pub(super) fn enter<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        service: u32,
        wanted: &[Cidr<A>],
    ) -> Result<ClientList, ApplyError> {
        if let Some(found) = self.find(service, wanted) {
            self.superseded.remove(&found);
            self.over.remove(&found);
            self.list(found).rests_until = None;
            return Ok(found);
        }
        let full = ApplyError::Full { table: A::TABLES.source_ranges };
        let mut editions = (0..=u8::MAX).map(|edition| ClientList { service, edition });
        let list = editions.find(|list| !self.lists.contains_key(list)).ok_or(full)?;
        self.list(list);
        for network in wanted {
            if let Err(error) = maps.set_source_range(list, *network) {
                self.over.insert(list);
                return Err(error.into());
            }
            self.writes += 1;
            self.networks += 1;
            self.list(list).networks.insert(*network);
        }
        Ok(list)
    }

    /// No service port wants a list any more.
    pub(super) fn supersede(&mut self, list: ClientList) {
        self.superseded.insert(list);
    }

    /// Whether there are lists that nobody wants and frontends may name.
    pub(super) fn has_superseded(&self) -> bool {
        !self.superseded.is_empty()
    }

    /// Lets those rest that nobody wants and no frontend names, and returns them.
    pub(super) fn rest(&mut self, named: &BTreeSet<ClientList>, until: Instant) -> Vec<ClientList> {
        let resting: Vec<_> = self.superseded.extract_if(.., |list| !named.contains(list)).collect();
        for list in &resting {
            self.list(*list).rests_until = Some(until);
        }
        resting
    }

    /// The time of a list that rested has come, unless it is in force again.
    pub(super) fn expire(&mut self, list: ClientList, now: Instant) {
        if self.lists.get(&list).and_then(|content| content.rests_until).is_some_and(|until| until <= now) {
            self.over.insert(list);
        }
    }

    /// Whether there are lists to remove.
    pub(super) fn has_leftovers(&self) -> bool {
        !self.over.is_empty()
    }

    /// Removes those whose time is over. Returns whether one of them had been in force: its room is available now.
    pub(super) fn remove_leftovers<M: FamilyMaps<A>>(&mut self, maps: &mut M, errors: &mut Vec<MapError>) -> bool {
        let mut any = false;
        for list in self.over.clone() {
            let rested = self.lists.get(&list).is_some_and(|content| content.rests_until.is_some());
            match self.remove(maps, list) {
                Ok(()) => any |= rested,
                Err(error) => errors.push(error),
            }
        }
        any
    }

    /// Removes all lists of a service that no frontend leads to.
    pub(super) fn remove_all<M: FamilyMaps<A>>(&mut self, maps: &mut M, service: u32) -> Result<(), MapError> {
        let lists: Vec<_> = self.lists.range(ClientList::all_of(service)).map(|(list, _)| *list).collect();
        // Even if the service is wanted again before the last of them is gone.
        self.over.extend(&lists);
        lists.into_iter().try_for_each(|list| self.remove(maps, list))
    }

    fn remove<M: FamilyMaps<A>>(&mut self, maps: &mut M, list: ClientList) -> Result<(), MapError> {
        if let Some(content) = self.lists.get_mut(&list) {
            while let Some(network) = content.networks.first().copied() {
                maps.remove_source_range(list, network)?;
                self.writes += 1;
                self.networks -= 1;
                content.networks.remove(&network);
            }
        }
        self.lists.remove(&list);
        self.superseded.remove(&list);
        self.over.remove(&list);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dataplane::{Capacities, Fake, Faulty};

    const ROOM: Capacities = Capacities { frontends: 1, services: 1, slots: 1, backends: 1, source_ranges: 5 };

    fn network(host: u8) -> Cidr<[u8; 4]> {
        Cidr::of_address([198, 51, 100, host])
    }

    fn list(edition: u8) -> ClientList {
        ClientList { service: 7, edition }
    }

    fn held(fake: &Fake) -> Vec<(u8, u8)> {
        let existing = FamilyMaps::<[u8; 4]>::existing(fake).expect("a fake reads");
        existing.source_ranges.iter().map(|(list, network)| (list.edition, network.address[3])).collect()
    }

    #[test]
    fn a_list_goes_after_it_was_superseded_and_rested_and_is_found_again_until_then() {
        let mut fake = Fake::new(ROOM);
        let mut lists = ClientLists::new(ROOM.source_ranges);
        let (old, new) = ([network(1), network(2)], [network(2), network(3)]);
        assert_eq!(lists.enter(&mut fake, 7, &old).expect("room"), list(0));
        assert_eq!(lists.enter(&mut fake, 7, &old).expect("found"), list(0));
        assert_eq!(lists.enter(&mut fake, 7, &new).expect("room"), list(1));
        assert_eq!((held(&fake), lists.writes), (vec![(0, 1), (0, 2), (1, 2), (1, 3)], 4));

        lists.supersede(list(0));
        let (now, until) = (Instant::now(), Instant::now() + Duration::from_secs(10));
        assert_eq!(lists.rest(&[list(0), list(1)].into(), until), [], "a frontend names it");
        assert!(lists.has_superseded());
        assert_eq!(lists.rest(&[list(1)].into(), until), [list(0)]);
        lists.expire(list(0), now);
        assert!(!lists.has_superseded() && !lists.has_leftovers(), "it rests");

        // Wanted again: what was said of it is void.
        assert_eq!(lists.enter(&mut fake, 7, &old).expect("found"), list(0));
        lists.expire(list(0), until);
        assert!(!lists.has_leftovers());
        lists.supersede(list(0));
        lists.rest(&[list(1)].into(), until);
        lists.expire(list(0), until);
        assert!(lists.has_leftovers() && lists.remove_leftovers(&mut fake, &mut Vec::new()));
        assert_eq!((held(&fake), lists.room()), (vec![(1, 2), (1, 3)], 3));
        assert_eq!(lists.enter(&mut fake, 7, &[network(9)]).expect("room"), list(0), "the edition is free");
        lists.remove_all(&mut fake, 7).expect("a fake");
        assert_eq!((held(&fake), lists.room(), lists.has(7)), (vec![], 5, false));
    }

    #[test]
    fn what_could_not_be_entered_whole_is_taken_back() {
        let mut fake = Fake::new(Capacities { source_ranges: 2, ..ROOM });
        // The table has less room than is known of: others have written to it.
        let mut lists = ClientLists::new(ROOM.source_ranges);
        let wanted = [1, 2, 3].map(network);
        assert!(lists.enter(&mut fake, 7, &wanted).expect_err("no room").is_full());
        assert_eq!(held(&fake), [(0, 1), (0, 2)]);
        let mut maps = Faulty::new(fake, 1000, 1);
        let mut errors = Vec::new();
        assert!(lists.has_leftovers() && !lists.remove_leftovers(&mut maps, &mut errors));
        assert_eq!((errors.len(), lists.has_leftovers()), (1, true), "it is tried again");
        maps.set_rate(0);
        assert!(!lists.remove_leftovers(&mut maps, &mut errors), "nobody waits for this room");
        assert_eq!((held(maps.inner()), lists.room(), lists.has_leftovers()), (vec![], 5, false));
    }

    #[test]
    fn a_list_is_entered_beside_the_one_that_it_replaces_or_not_at_all() {
        let mut fake = Fake::new(ROOM);
        let mut lists = ClientLists::new(ROOM.source_ranges);
        let old = [1, 2, 3].map(network);
        lists.enter(&mut fake, 7, &old).expect("room");
        let new = [4, 5, 6].map(network);
        let error = lists.make_room(7, &new, true).expect_err("no room for both").to_string();
        assert_eq!(
            error,
            "table SOURCE_RANGES4 is full: a new list of 3 networks of clients is entered beside what is in force, \
             and there is room for 2"
        );
        let error = lists.make_room(8, &new, false).expect_err("no room").to_string();
        assert_eq!(error, "table SOURCE_RANGES4 is full");
        lists.make_room(7, &old, true).expect("it is there");
        lists.make_room(7, &new[..2], true).expect("room");
    }

    #[test]
    fn editions_come_to_an_end() {
        let mut fake = Fake::default();
        let mut lists = ClientLists::new(1000);
        for host in 0..=u8::MAX {
            assert_eq!(lists.enter(&mut fake, 7, &[network(host)]).expect("room"), list(host));
        }
        assert!(lists.enter(&mut fake, 7, &[network(1), network(2)]).expect_err("no edition").is_full());
        lists.enter(&mut fake, 8, &[network(1)]).expect("another service has its own");
        lists.supersede(list(9));
        let now = Instant::now();
        lists.rest(&BTreeSet::new(), now);
        lists.expire(list(9), now);
        lists.remove_leftovers(&mut fake, &mut Vec::new());
        assert_eq!(lists.enter(&mut fake, 7, &[network(1), network(2)]).expect("one is free"), list(9));
    }

    #[test]
    fn what_frontends_name_is_taken_over_and_the_rest_is_removed() {
        let mut fake = Fake::default();
        let held_by_former = [(list(3), network(1)), (list(4), network(1)), (list(4), network(2))];
        for (list, network) in held_by_former {
            fake.set_source_range(list, network).expect("a fake");
        }
        let mut lists = ClientLists::new(5);
        lists.adopt(held_by_former.to_vec(), &[list(0), list(3)].into());
        lists.supersede(list(0));
        assert_eq!((lists.room(), lists.services()), (2, [7].into()));
        assert_eq!(lists.enter(&mut fake, 7, &[network(1)]).expect("found"), list(3));
        assert_eq!(lists.enter(&mut fake, 7, &[network(5)]).expect("room"), list(1), "a frontend names the first");
        assert!(lists.has_leftovers());
        lists.remove_leftovers(&mut fake, &mut Vec::new());
        assert_eq!(held(&fake), [(1, 5), (3, 1)]);
        assert_eq!(lists.rest(&BTreeSet::new(), Instant::now()), [list(0)], "3 is in force");
    }
}
