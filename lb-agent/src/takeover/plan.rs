//! What of a table goes and what stays, and why.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    message::{Family, Message},
    names::{ENTRIES, IPTABLES_TABLES, MARKS, MASQUERADES, NFTABLES_TABLE, is_kube_proxys},
    ruleset::{Rule, Table},
};

/// What was found of kube-proxy in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: String,
    /// The mode of kube-proxy that makes such tables.
    pub mode: &'static str,
    /// Chains of kube-proxy, those that are kept included.
    pub chains: usize,
    /// Rules in these chains.
    pub rules: usize,
    /// Rules of base chains that lead to them.
    pub jumps: usize,
    /// Chains of kube-proxy that are left, and why.
    pub kept: BTreeMap<String, String>,
    /// Why all of it is left.
    pub left: Option<&'static str>,
    removal: Removal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Removal {
    Table,
    Chains {
        /// Chain and handle of each rule.
        jumps: Vec<(String, u64)>,
        chains: Vec<String>,
    },
}

impl Found {
    /// Whether nothing of it stays.
    pub fn goes_whole(&self) -> bool {
        self.left.is_none() && self.kept.is_empty()
    }

    /// The messages that remove it, in an order that leaves no rule that leads to a chain that is gone; each with what it
    /// does.
    pub(super) fn removal(&self) -> Vec<(String, Message)> {
        let Self { family, table, .. } = self;
        if self.left.is_some() {
            return Vec::new();
        }
        let named = |what: String| format!("{what} of {} {table}", family.name());
        match &self.removal {
            Removal::Table => {
                vec![(format!("table {} {table}", family.name()), Message::delete_table(*family, table))]
            }
            Removal::Chains { jumps, chains } => {
                let jumps = jumps.iter().map(|(chain, handle)| {
                    let what = named(format!("rule {handle} in chain {chain}"));
                    (what, Message::delete_rule(*family, table, chain, *handle))
                });
                let flush = chains.iter().map(|chain| {
                    (named(format!("the rules in chain {chain}")), Message::flush_chain(*family, table, chain))
                });
                let delete = chains
                    .iter()
                    .map(|chain| (named(format!("chain {chain}")), Message::delete_chain(*family, table, chain)));
                jumps.chain(flush).chain(delete).collect()
            }
        }
    }
}

/// Finds what is kube-proxy's in a table; `None` where nothing is.
pub(super) fn look(family: Family, table: &Table) -> Option<Found> {
    if table.name == NFTABLES_TABLE {
        return Some(Found {
            family,
            table: table.name.clone(),
            mode: "nftables",
            chains: table.chains.len(),
            rules: table.rules.len(),
            jumps: 0,
            kept: BTreeMap::new(),
            left: None,
            removal: Removal::Table,
        });
    }
    if !IPTABLES_TABLES.contains(&table.name.as_str()) {
        return None;
    }
    let base: BTreeSet<&str> = names(table, |chain| chain.is_base);
    let own: BTreeSet<&str> = names(table, |chain| !chain.is_base && is_kube_proxys(&chain.name));
    if own.is_empty() {
        return None;
    }
    let is_entry = |rule: &Rule| {
        let is_own = |target: &String| ENTRIES.contains(&target.as_str()) && own.contains(target.as_str());
        base.contains(rule.chain.as_str()) && rule.targets.iter().any(is_own)
    };
    let (inner, outer): (Vec<&Rule>, Vec<&Rule>) =
        table.rules.iter().partition(|rule| own.contains(rule.chain.as_str()));
    let (entries, others): (Vec<&Rule>, Vec<&Rule>) = outer.into_iter().partition(|rule| is_entry(rule));
    let kept = kept(&own, &inner, &others);
    let stays = |rule: &Rule| kept.contains_key(MASQUERADES) && rule.targets.iter().any(|target| target == MASQUERADES);
    let chains: Vec<String> = own.iter().filter(|chain| !kept.contains_key(**chain)).map(ToString::to_string).collect();
    let jumps = entries.iter().filter(|rule| !stays(rule)).map(|rule| (rule.chain.clone(), rule.handle));
    Some(Found {
        family,
        table: table.name.clone(),
        mode: "iptables",
        chains: own.len(),
        rules: inner.len(),
        jumps: entries.len(),
        removal: Removal::Chains { jumps: jumps.collect(), chains },
        kept,
        left: None,
    })
}

fn names(table: &Table, wanted: impl Fn(&super::ruleset::Chain) -> bool) -> BTreeSet<&str> {
    table.chains.iter().filter(|chain| wanted(chain)).map(|chain| chain.name.as_str()).collect()
}

/// The chains that rules of others lead to, with all that these lead to in turn. Who marks packets by kube-proxy's chain
/// counts on the chain that masquerades them.
fn kept(own: &BTreeSet<&str>, inner: &[&Rule], others: &[&Rule]) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    let targets = |rule: &Rule| rule.targets.clone().into_iter().filter(|target| own.contains(target.as_str()));
    let mut waiting: Vec<(String, String)> = Vec::new();
    for rule in others {
        waiting.extend(targets(rule).map(|target| (target, format!("a rule in {} leads to it", rule.chain))));
    }
    while let Some((chain, why)) = waiting.pop() {
        if kept.contains_key(&chain) {
            continue;
        }
        let rules = inner.iter().filter(|rule| rule.chain == chain);
        waiting.extend(rules.flat_map(|rule| targets(rule)).map(|target| (target, format!("{chain} leads to it"))));
        if chain == MARKS && own.contains(MASQUERADES) {
            waiting.push((MASQUERADES.to_owned(), format!("masquerades what {MARKS} marks")));
        }
        kept.insert(chain, why);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{super::ruleset::Chain, *};

    /// A table; `rules` are `(chain, target)`, with handles from 1.
    fn table(name: &str, base: &[&str], chains: &[&str], rules: &[(&str, &str)]) -> Table {
        let chain = |name: &&str, is_base| Chain { table: String::new(), name: (*name).to_owned(), is_base };
        let rule = |(handle, (chain, target)): (u64, &(&str, &str))| Rule {
            chain: (*chain).to_owned(),
            handle,
            targets: (!target.is_empty()).then(|| (*target).to_owned()).into_iter().collect(),
        };
        Table {
            name: name.to_owned(),
            chains: base
                .iter()
                .map(|name| chain(name, true))
                .chain(chains.iter().map(|name| chain(name, false)))
                .collect(),
            rules: (1..).zip(rules).map(rule).collect(),
        }
    }

    const SERVICE: &str = "KUBE-SVC-ERIFXISQEP7F7OF4";
    const ENDPOINT: &str = "KUBE-SEP-ERIFXISQEP7F7OF4";

    fn nat(more_chains: &[&str], more: &[(&str, &str)]) -> Table {
        let base = ["PREROUTING", "OUTPUT", "POSTROUTING"];
        let own = ["KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY", SERVICE, ENDPOINT];
        let rules = [
            ("PREROUTING", "KUBE-SERVICES"),
            ("OUTPUT", "KUBE-SERVICES"),
            ("POSTROUTING", "KUBE-POSTROUTING"),
            ("KUBE-SERVICES", SERVICE),
            (SERVICE, "KUBE-MARK-MASQ"),
            (SERVICE, ENDPOINT),
            (ENDPOINT, ""),
            ("POSTROUTING", ""),
        ];
        table("nat", &base, &[&own, more_chains].concat(), &[&rules, more].concat())
    }

    #[test]
    fn everything_of_kube_proxys_goes_and_nothing_else() {
        let found = look(Family::Ipv4, &nat(&["KUBE-FIREWALL", "MINE"], &[("POSTROUTING", "MINE")])).expect("found");
        assert_eq!((found.chains, found.rules, found.jumps), (6, 4, 3));
        assert_eq!(found.kept, BTreeMap::new());
        let jumps = [("PREROUTING", 1), ("OUTPUT", 2), ("POSTROUTING", 3)];
        let chains = ["KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-PROXY-CANARY", ENDPOINT, "KUBE-SERVICES", SERVICE]
            .map(String::from);
        assert_eq!(
            found.removal,
            Removal::Chains {
                jumps: jumps.map(|(chain, handle)| (chain.to_owned(), handle)).to_vec(),
                chains: chains.to_vec()
            }
        );
        let messages = found.removal();
        assert_eq!(messages.len(), 3 + 6 + 6);
        assert_eq!(messages[3].0, "the rules in chain KUBE-MARK-MASQ of ip nat");
    }

    #[test]
    fn what_another_plugin_marks_packets_with_stays_with_what_masquerades_them() {
        // The CNI plugin `portmap`, with `externalSetMarkChain: KUBE-MARK-MASQ`.
        let found = look(Family::Ipv4, &nat(&["CNI-DN-1"], &[("CNI-DN-1", "KUBE-MARK-MASQ")])).expect("found");
        assert_eq!(found.kept.keys().collect::<Vec<_>>(), ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"]);
        assert_eq!(found.kept["KUBE-MARK-MASQ"], "a rule in CNI-DN-1 leads to it");
        let Removal::Chains { jumps, chains } = found.removal else { panic!("not a table of its own") };
        assert_eq!(jumps, [("PREROUTING".to_owned(), 1), ("OUTPUT".to_owned(), 2)]);
        assert_eq!(chains.len(), 4);
    }

    #[test]
    fn a_chain_that_another_jumps_to_stays_with_all_that_it_leads_to() {
        let found = look(Family::Ipv4, &nat(&["MINE"], &[("MINE", SERVICE)])).expect("found");
        let expected = [ENDPOINT, SERVICE, "KUBE-MARK-MASQ", "KUBE-POSTROUTING"];
        assert_eq!(found.kept.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected.into());
    }

    #[test]
    fn a_base_chain_that_jumps_past_the_entries_is_someone_elses() {
        let found = look(Family::Ipv4, &nat(&[], &[("OUTPUT", "KUBE-MARK-MASQ")])).expect("found");
        assert!(found.kept.contains_key("KUBE-MARK-MASQ"));
    }

    #[test]
    fn a_table_without_chains_of_kube_proxys_is_not_reported() {
        assert_eq!(look(Family::Ipv4, &table("nat", &["OUTPUT"], &["DOCKER"], &[("OUTPUT", "DOCKER")])), None);
        assert_eq!(look(Family::Ipv4, &table("filter", &[], &["KUBE-FIREWALL"], &[])), None);
        assert_eq!(look(Family::Ipv4, &table("mine", &[], &["KUBE-SERVICES"], &[])), None);
    }

    #[test]
    fn the_table_of_nftables_mode_goes_whole() {
        let found =
            look(Family::Ipv6, &table("kube-proxy", &["nat-output"], &["services"], &[("nat-output", "services")]));
        let found = found.expect("found");
        assert_eq!((found.chains, found.rules), (2, 1));
        assert_eq!(
            found.removal(),
            [("table ip6 kube-proxy".to_owned(), Message::delete_table(Family::Ipv6, "kube-proxy"))]
        );
    }
}
