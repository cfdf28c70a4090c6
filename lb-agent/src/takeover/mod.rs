//! Takes a node over from kube-proxy: finds what it left in the kernel, and removes it, while the connections that it
//! translated go on.
//!
//! | mode | left behind | here |
//! |---|---|---|
//! | nftables | tables `ip kube-proxy` and `ip6 kube-proxy` | removed |
//! | iptables, by iptables-nft | chains in tables nat, filter and mangle, and rules that lead to them | removed; what others made stays as it is |
//! | iptables, by iptables-legacy | the same, outside of nftables | found, and the command that removes it is said |
//! | ipvs | virtual servers, device `kube-ipvs0`, ipsets, chains | found, and left: `kube-proxy --cleanup` removes it |
//!
//! All removals of a run are one nftables transaction, valid for the ruleset that was looked at only: either all of it
//! is there or nothing is. No program is started.
//!
//! # Established connections
//!
//! Connection tracking remembers their translation, without any rule. But the kernel tracks connections in a network
//! namespace only while a rule there asks for it (`nf_ct_netns_get`), and translates only while there is a chain of
//! type nat (`nf_nat_register_fn`). Where kube-proxy's were the last, removing them ends every connection through it,
//! silently. So the transaction that removes them adds a table [`KEEPALIVE`], which holds one of each and decides
//! nothing.

mod legacy;
mod message;
mod names;
mod plan;
mod ruleset;
mod signs;
mod socket;

use std::io;

pub use legacy::LegacyTable;
pub use message::Family;
use message::{Kind, Message};
pub use plan::Found;
use ruleset::{Chain, Rule, Table};
pub(crate) use signs::process;
pub use signs::{Ipvs, kube_proxy_runs};
use socket::Netfilter;

/// The table that keeps translated connections alive once kube-proxy's rules are gone, in each family where there were
/// any.
pub const KEEPALIVE: &str = "lb-nat-keepalive";

/// How often a look at the ruleset is repeated when it changes meanwhile. Each takes milliseconds.
const ATTEMPTS: u32 = 20;

/// Why kube-proxy's leftovers could not be found or removed.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// No netlink socket.
    #[error("opening a netlink socket to netfilter: {0}")]
    Socket(#[source] io::Error),
    /// The kernel would not show something.
    #[error("listing {what}: {source}")]
    List {
        /// What was to be listed.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel would not remove something. Nothing has been changed.
    #[error("removing {what}: {source}; nothing has been changed")]
    Remove {
        /// What was to be removed.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else writes rules all the time.
    #[error("the ruleset changed during each of {ATTEMPTS} attempts: is kube-proxy still running?")]
    Changing,
}

/// What kube-proxy left on this node.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// In nftables, chains that iptables-nft made there included.
    pub found: Vec<Found>,
    /// In the tables of iptables-legacy.
    pub legacy: Vec<LegacyTable>,
    /// Of mode ipvs.
    pub ipvs: Option<Ipvs>,
    /// The families that have the table [`KEEPALIVE`].
    pub keepalive: Vec<Family>,
    generation: Option<u32>,
}

/// What becomes of connections that kube-proxy translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// They go on.
    Keep,
    /// They end: nothing of theirs is left either.
    End,
}

impl Leftovers {
    /// Looks for them. Changes nothing.
    pub fn find() -> Result<Self, TakeoverError> {
        Netfilter::open()?.map_or_else(|| Ok(Self::default()), |mut netfilter| Self::find_by(&mut netfilter))
    }

    /// Looks for them, and removes what can be removed.
    pub fn remove(connections: Connections) -> Result<Self, TakeoverError> {
        let Some(mut netfilter) = Netfilter::open()? else { return Ok(Self::default()) };
        for _ in 0..ATTEMPTS {
            let leftovers = Self::find_by(&mut netfilter)?;
            let Some(generation) = leftovers.generation else { return Ok(leftovers) };
            if netfilter.apply(generation, &leftovers.batch(connections))? {
                return Ok(leftovers);
            }
        }
        Err(TakeoverError::Changing)
    }

    /// The families in which connections must be kept alive.
    pub fn translating(&self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(|family| {
            self.found.iter().any(|found| found.family == *family && found.left.is_none())
                || self.legacy.iter().any(|table| table.family == *family)
        })
    }

    fn batch(&self, connections: Connections) -> Vec<(String, Message)> {
        let mut batch: Vec<_> = self.found.iter().flat_map(Found::removal).collect();
        match connections {
            Connections::Keep => {
                for family in self.translating().filter(|family| !self.keepalive.contains(family)) {
                    let what = format!("nothing, but adding table {} {KEEPALIVE}", family.name());
                    batch.extend(Message::keep_alive(family, KEEPALIVE).map(|message| (what.clone(), message)));
                }
            }
            Connections::End => batch.extend(self.keepalive.iter().map(|family| {
                (format!("table {} {KEEPALIVE}", family.name()), Message::delete_table(*family, KEEPALIVE))
            })),
        }
        batch
    }

    fn find_by(netfilter: &mut Netfilter) -> Result<Self, TakeoverError> {
        let mut leftovers = Self { legacy: legacy::find()?, ipvs: signs::ipvs(), ..Self::default() };
        for _ in 0..ATTEMPTS {
            let Some(generation) = netfilter.generation()? else { return Ok(leftovers) };
            let Some(tables) = tables(netfilter)? else { continue };
            if netfilter.generation()? != Some(generation) {
                continue;
            }
            leftovers.generation = Some(generation);
            let keepalive = tables.iter().filter(|(_, table)| table.name == KEEPALIVE);
            leftovers.keepalive = keepalive.map(|(family, _)| *family).collect();
            leftovers.found = tables.iter().filter_map(|(family, table)| plan::look(*family, table)).collect();
            if leftovers.ipvs.is_some() {
                for found in leftovers.found.iter_mut().filter(|found| found.mode == "iptables") {
                    found.left = Some("kube-proxy's virtual servers (mode ipvs) count on it");
                }
            }
            return Ok(leftovers);
        }
        Err(TakeoverError::Changing)
    }
}

/// Whether connections that kube-proxy translated may still be going on: its rules are there, or the table that keeps
/// those connections alive.
pub fn is_under_way() -> Result<bool, TakeoverError> {
    if !legacy::find()?.is_empty() {
        return Ok(true);
    }
    let Some(mut netfilter) = Netfilter::open()? else { return Ok(false) };
    for _ in 0..ATTEMPTS {
        if netfilter.generation()?.is_none() {
            return Ok(false);
        }
        if let Some(tables) = chains(&mut netfilter)? {
            return Ok(tables.iter().any(|(_, table)| {
                let is_whole = table.name == KEEPALIVE || table.name == names::NFTABLES_TABLE;
                is_whole || table.chains.iter().any(|chain| names::is_kube_proxys(&chain.name))
            }));
        }
    }
    Err(TakeoverError::Changing)
}

/// Removes the tables [`KEEPALIVE`]. Gives the families that had one.
pub fn remove_keepalive() -> Result<Vec<Family>, TakeoverError> {
    let Some(mut netfilter) = Netfilter::open()? else { return Ok(Vec::new()) };
    for _ in 0..ATTEMPTS {
        let Some(generation) = netfilter.generation()? else { return Ok(Vec::new()) };
        let Some(tables) = chains(&mut netfilter)? else { continue };
        let keepalive = tables.iter().filter(|(_, table)| table.name == KEEPALIVE);
        let families: Vec<Family> = keepalive.map(|(family, _)| *family).collect();
        let delete = |family: &Family| {
            (format!("table {} {KEEPALIVE}", family.name()), Message::delete_table(*family, KEEPALIVE))
        };
        if netfilter.apply(generation, &families.iter().map(delete).collect::<Vec<_>>())? {
            return Ok(families);
        }
    }
    Err(TakeoverError::Changing)
}

/// The tables that may hold something of kube-proxy's or ours; `None` if the ruleset changed meanwhile.
fn tables(netfilter: &mut Netfilter) -> Result<Option<Vec<(Family, Table)>>, TakeoverError> {
    let Some(mut tables) = chains(netfilter)? else { return Ok(None) };
    for (family, table) in &mut tables {
        let Some(rules) = netfilter.dump(Kind::GetRule, *family, Some(&table.name))? else { return Ok(None) };
        table.rules = rules.iter().filter_map(|rule| Rule::decode(rule)).collect();
    }
    Ok(Some(tables))
}

/// As [`tables`], without their rules.
fn chains(netfilter: &mut Netfilter) -> Result<Option<Vec<(Family, Table)>>, TakeoverError> {
    let mut tables: Vec<(Family, Table)> = Vec::new();
    for family in Family::BOTH {
        let Some(chains) = netfilter.dump(Kind::GetChain, family, None)? else { return Ok(None) };
        for chain in chains.iter().filter_map(|chain| Chain::decode(chain)) {
            if !is_of_interest(&chain.table) {
                continue;
            }
            match tables.iter_mut().find(|(of, table)| *of == family && table.name == chain.table) {
                Some((_, table)) => table.chains.push(chain),
                None => {
                    tables.push((family, Table { name: chain.table.clone(), chains: vec![chain], rules: Vec::new() }));
                }
            }
        }
    }
    Ok(Some(tables))
}

fn is_of_interest(table: &str) -> bool {
    table == KEEPALIVE || table == names::NFTABLES_TABLE || names::IPTABLES_TABLES.contains(&table)
}
