use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::FrontendKey;

use super::{
    Family, ServicePortName,
    objects::{ObjectKey, Protocol},
};

/// Two service ports that claim the same frontend. Reported once, when it comes up; when the holder goes, the claimant
/// gets the frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address that both want; unspecified for a node port.
    pub address: IpAddr,
    /// The port that both want.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The older Service, which has it.
    pub holder: ServicePortName,
    /// The younger, which is served without it.
    pub claimant: ServicePortName,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, protocol, holder, claimant } = self;
        if address.is_unspecified() {
            write!(f, "node port {port}")?;
        } else {
            write!(f, "{}", SocketAddr::new(*address, *port))?;
        }
        write!(f, "/{} of {claimant} belongs to {holder}", protocol.name())
    }
}

/// A service port that wants a frontend. The least of those that want the same one holds it: a cluster IP, which the API
/// server gave to one Service alone, before an address that anyone may write into an object; then the oldest Service,
/// and among equally old ones the first by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub(super) external: bool,
    pub(super) created: i64,
    pub(super) name: ServicePortName,
}

/// Who wants which frontend.
#[derive(Debug)]
pub(super) struct Claims<A> {
    /// Those that want each frontend, the holder first.
    claimants: HashMap<FrontendKey<A>, Vec<Claimant>>,
    of_service: HashMap<ObjectKey, Box<[FrontendKey<A>]>>,
    /// Who is known to go without a frontend that it wants.
    losers: BTreeMap<FrontendKey<A>, Vec<ServicePortName>>,
    /// Frontends whose claimants changed since the last [`Self::settle`], and who held each.
    touched: BTreeMap<FrontendKey<A>, Option<ServicePortName>>,
}

impl<A: Family> Claims<A> {
    pub(super) fn new() -> Self {
        Self {
            claimants: HashMap::new(),
            of_service: HashMap::new(),
            losers: BTreeMap::new(),
            touched: BTreeMap::new(),
        }
    }

    /// Whether the frontend belongs to this service port.
    pub(super) fn holds(&self, key: &FrontendKey<A>, name: &ServicePortName) -> bool {
        self.holder(key) == Some(name)
    }

    fn holder(&self, key: &FrontendKey<A>) -> Option<&ServicePortName> {
        self.claimants.get(key)?.first().map(|claimant| &claimant.name)
    }

    /// Replaces all that a Service wants.
    pub(super) fn replace(&mut self, service: &ObjectKey, wanted: Vec<(FrontendKey<A>, Claimant)>) {
        for key in self.of_service.remove(service).unwrap_or_default() {
            self.touch(key);
            if let Some(claimants) = self.claimants.get_mut(&key) {
                claimants.retain(|claimant| claimant.name.service != *service);
                if claimants.is_empty() {
                    self.claimants.remove(&key);
                }
            }
        }
        if wanted.is_empty() {
            return;
        }
        self.of_service.insert(service.clone(), wanted.iter().map(|(key, _)| *key).collect());
        for (key, claimant) in wanted {
            self.touch(key);
            let claimants = self.claimants.entry(key).or_insert_with(|| Vec::with_capacity(1));
            claimants.insert(claimants.partition_point(|other| *other < claimant), claimant);
        }
    }

    fn touch(&mut self, key: FrontendKey<A>) {
        if !self.touched.contains_key(&key) {
            self.touched.insert(key, self.holder(&key).cloned());
        }
    }

    /// What came of the replacements since the last call: the Services that lost or got a frontend, and the conflicts
    /// that are new.
    pub(super) fn settle(&mut self, moved: &mut BTreeSet<ObjectKey>, conflicts: &mut Vec<Conflict>) {
        for (key, before) in std::mem::take(&mut self.touched) {
            let mut names = self.claimants.get(&key).into_iter().flatten().map(|claimant| &claimant.name);
            let holder = names.next();
            let losers: Vec<ServicePortName> = names.cloned().collect();
            if holder != before.as_ref() {
                moved.extend(holder.into_iter().chain(&before).map(|name| name.service.clone()));
            }
            let known = self.losers.remove(&key).unwrap_or_default();
            if let Some(holder) = holder {
                let new = losers.iter().filter(|loser| !known.contains(loser));
                conflicts.extend(new.filter_map(|loser| {
                    Some(Conflict {
                        address: key.address.to_ip(),
                        port: key.port,
                        protocol: Protocol::from_number(key.protocol)?,
                        holder: holder.clone(),
                        claimant: loser.clone(),
                    })
                }));
            }
            if !losers.is_empty() {
                self.losers.insert(key, losers);
            }
        }
    }
}
