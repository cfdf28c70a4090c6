//! Chains and rules as nftables lists them, reduced to what leads to what. iptables-nft keeps its tables in the same
//! place, and a jump of an iptables rule is a jump there.

use super::message::{attributes, body, text};

/// `NFT_JUMP`, `NFT_GOTO` (`enum nft_verdicts`).
const JUMPS: [i32; 2] = [-3, -4];

/// A table with all that is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) chains: Vec<Chain>,
    pub(super) rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) table: String,
    pub(super) name: String,
    /// Packets come into it from a hook of the kernel.
    pub(super) is_base: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: String,
    pub(super) handle: u64,
    /// The chains that it may lead to.
    pub(super) targets: Vec<String>,
}

impl Chain {
    /// From the payload of `NFT_MSG_NEWCHAIN`.
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let (mut table, mut name, mut is_base) = (None, None, false);
        for (kind, value) in attributes(body(payload)) {
            match kind {
                1 => table = Some(text(value)),
                3 => name = Some(text(value)),
                4 => is_base = true,
                _ => {}
            }
        }
        Some(Self { table: table?, name: name?, is_base })
    }
}

impl Rule {
    /// From the payload of `NFT_MSG_NEWRULE`.
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let (mut chain, mut handle, mut targets) = (None, None, Vec::new());
        for (kind, value) in attributes(body(payload)) {
            match kind {
                2 => chain = Some(text(value)),
                3 => handle = Some(u64::from_be_bytes(value.try_into().ok()?)),
                4 => targets = attributes(value).filter_map(|(_, expression)| target(expression)).collect(),
                _ => {}
            }
        }
        Some(Self { chain: chain?, handle: handle?, targets })
    }
}

/// The chain that an expression leads to: of the kind `immediate`, with a verdict as its data.
fn target(expression: &[u8]) -> Option<String> {
    if text(find(expression, 1)?) != "immediate" {
        return None;
    }
    let verdict = find(find(find(expression, 2)?, 2)?, 2)?;
    let code = i32::from_be_bytes(find(verdict, 1)?.try_into().ok()?);
    JUMPS.contains(&code).then(|| find(verdict, 2).map(text))?
}

fn find(list: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(list).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::takeover::message::{Attributes, Family, Kind, Message, NETLINK_HEADER};

    /// The payload of the message that would delete the rule, to which `nft` would add these expressions.
    fn rule(code: i32) -> Vec<u8> {
        let none = Attributes::default;
        let verdict = none().bytes(1, &code.to_be_bytes()).text(2, "KUBE-SERVICES");
        let jump = none().number(1, 0).nested(2, &none().nested(2, &verdict));
        let expressions = none()
            .nested(1, &none().text(1, "counter").nested(2, &none()))
            .nested(1, &none().text(1, "immediate").nested(2, &jump));
        let rule = none().text(1, "nat").text(2, "OUTPUT").bytes(3, &5_u64.to_be_bytes()).nested(4, &expressions);
        [&[2, 0, 0, 0][..], &rule.into_bytes()].concat()
    }

    #[test]
    fn jumps_and_gotos_lead_to_chains_and_other_verdicts_do_not() {
        for code in JUMPS {
            let rule = Rule::decode(&rule(code)).expect("a rule");
            assert_eq!(rule, Rule { chain: "OUTPUT".into(), handle: 5, targets: vec!["KUBE-SERVICES".into()] });
        }
        assert_eq!(Rule::decode(&rule(1)).expect("a rule").targets, [""; 0], "NF_ACCEPT");
    }

    #[test]
    fn a_base_chain_has_a_hook() {
        let [_, chain, _] = Message::keep_alive(Family::Ipv4, "t");
        let mut bytes = Vec::new();
        chain.write(1, &mut bytes);
        let chain = Chain::decode(&bytes[NETLINK_HEADER..]).expect("a chain");
        assert_eq!(chain, Chain { table: "t".into(), name: "postrouting".into(), is_base: true });
        bytes.clear();
        Message::delete_chain(Family::Ipv4, "t", "c").write(1, &mut bytes);
        assert!(!Chain::decode(&bytes[NETLINK_HEADER..]).expect("a chain").is_base);
        bytes.clear();
        Message::dump(Kind::GetChain, Family::Ipv4, None).write(1, &mut bytes);
        assert_eq!(Chain::decode(&bytes[NETLINK_HEADER..]), None);
    }
}
