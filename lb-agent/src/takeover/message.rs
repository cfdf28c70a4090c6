//! Messages of nftables as the kernel reads them: a netlink header, `struct nfgenmsg`, attributes. Numbers are in the
//! machine's order in both headers, and in network order in attributes (`include/uapi/linux/netfilter/nf_tables.h`).

use netlink_packet_core::NlasIterator;

/// `struct nlmsghdr` and `struct nfgenmsg`.
pub(super) const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// `NFNL_SUBSYS_NFTABLES`, in the upper byte of a message's type.
const NFTABLES: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`.
const BATCH_GENERATION: u16 = 1;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// The hook and priority of the keep-alive chain: `NF_INET_POST_ROUTING`, `NF_IP_PRI_NAT_SRC`.
const POSTROUTING: u32 = 4;
const PRIORITY_SOURCE_NAT: u32 = 100;

/// An IP family (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `ip`.
    Ipv4 = 2,
    /// `ip6`.
    Ipv6 = 10,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// As `nft` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }
}

/// `enum nf_tables_msg_types`, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    DeleteChain = 5,
    NewRule = 6,
    GetRule = 7,
    DeleteRule = 8,
    GetGeneration = 16,
}

/// Attributes of one nesting level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("attributes of ours are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        self.bytes(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub(super) fn number(self, kind: u16, number: u32) -> Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    #[cfg(test)]
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// One message that is to be sent. Its sequence number is given when it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    family: u8,
    /// `nfgenmsg.res_id`, in network order.
    resource: u16,
    attributes: Attributes,
}

impl Message {
    fn new(kind: Kind, flags: u16, family: u8, attributes: Attributes) -> Self {
        Self { kind: NFTABLES << 8 | kind as u16, flags: REQUEST | flags, family, resource: 0, attributes }
    }

    /// Asks for the number of the ruleset's last change.
    pub(super) fn get_generation() -> Self {
        Self::new(Kind::GetGeneration, ACKNOWLEDGE, 0, Attributes::default())
    }

    /// Asks for all objects of a kind and a family; of rules, for those of a table.
    pub(super) fn dump(kind: Kind, family: Family, table: Option<&str>) -> Self {
        let attributes = table.map_or_else(Attributes::default, |table| Attributes::default().text(1, table));
        Self::new(kind, DUMP, family as u8, attributes)
    }

    /// Begins a batch that applies to this generation of the ruleset only.
    pub(super) fn begin(generation: u32) -> Self {
        let attributes = Attributes::default().number(BATCH_GENERATION, generation);
        Self { kind: BATCH_BEGIN, flags: REQUEST, family: 0, resource: NFTABLES, attributes }
    }

    pub(super) fn end() -> Self {
        Self { kind: BATCH_END, flags: REQUEST, family: 0, resource: NFTABLES, attributes: Attributes::default() }
    }

    pub(super) fn delete_table(family: Family, table: &str) -> Self {
        Self::new(Kind::DeleteTable, 0, family as u8, Attributes::default().text(1, table))
    }

    /// Deletes one rule.
    pub(super) fn delete_rule(family: Family, table: &str, chain: &str, handle: u64) -> Self {
        let attributes = Attributes::default().text(1, table).text(2, chain).bytes(3, &handle.to_be_bytes());
        Self::new(Kind::DeleteRule, 0, family as u8, attributes)
    }

    /// Deletes every rule of a chain.
    pub(super) fn flush_chain(family: Family, table: &str, chain: &str) -> Self {
        Self::new(Kind::DeleteRule, 0, family as u8, Attributes::default().text(1, table).text(2, chain))
    }

    pub(super) fn delete_chain(family: Family, table: &str, chain: &str) -> Self {
        Self::new(Kind::DeleteChain, 0, family as u8, Attributes::default().text(1, table).text(3, chain))
    }

    /// Makes a table with one chain of type nat at postrouting, and in it one rule that reads connection tracking and
    /// decides nothing: `ct state established`. See [`KEEPALIVE`](super::KEEPALIVE).
    pub(super) fn keep_alive(family: Family, table: &str) -> [Self; 3] {
        const CHAIN: &str = "postrouting";
        let none = Attributes::default;
        let hook = none().number(1, POSTROUTING).number(2, PRIORITY_SOURCE_NAT);
        let chain = none().text(1, table).text(3, CHAIN).nested(4, &hook).text(7, "nat");
        let data = |value: [u8; 4]| none().bytes(1, &value);
        let expression = |name: &str, inner: Attributes| none().text(1, name).nested(2, &inner);
        // Register 1 := ct state; register 1 &= NF_CT_STATE_BIT(IP_CT_ESTABLISHED), in the machine's order; != 0.
        let load = expression("ct", none().number(2, 0).number(1, 1));
        let mask = none().number(1, 1).number(2, 1).number(3, 4).nested(4, &data(2_u32.to_ne_bytes()));
        let mask = expression("bitwise", mask.nested(5, &data([0; 4])));
        let compare = expression("cmp", none().number(1, 1).number(2, 1).nested(3, &data([0; 4])));
        let expressions = [load, mask, compare].iter().fold(none(), |list, one| list.nested(1, one));
        let rule = none().text(1, table).text(2, CHAIN).nested(4, &expressions);
        [
            Self::new(Kind::NewTable, CREATE, family as u8, none().text(1, table)),
            Self::new(Kind::NewChain, CREATE, family as u8, chain),
            Self::new(Kind::NewRule, CREATE | APPEND, family as u8, rule),
        ]
    }

    /// The same message, with an answer also to its success.
    pub(super) fn acknowledged(self) -> Self {
        Self { flags: self.flags | ACKNOWLEDGE, ..self }
    }

    /// Appends the message.
    pub(super) fn write(&self, sequence: u32, to: &mut Vec<u8>) {
        let Self { kind, flags, family, resource, attributes } = self;
        let length = NETLINK_HEADER + NETFILTER_HEADER + attributes.0.len();
        to.extend_from_slice(&u32::try_from(length).expect("messages of ours are short").to_ne_bytes());
        to.extend_from_slice(&kind.to_ne_bytes());
        to.extend_from_slice(&flags.to_ne_bytes());
        to.extend_from_slice(&sequence.to_ne_bytes());
        // The sender's port: the kernel's to fill in.
        to.extend_from_slice(&[0; 4]);
        // Version: NFNETLINK_V0.
        to.extend_from_slice(&[*family, 0]);
        to.extend_from_slice(&resource.to_be_bytes());
        to.extend_from_slice(&attributes.0);
    }
}

/// The attributes of a received message, `struct nfgenmsg` and all before it cut off. Malformed ones end the list.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let range = 4..4 + attribute.value_length();
        (attribute.kind(), &attribute.into_inner()[range])
    })
}

/// Of a message's payload: the attributes behind `struct nfgenmsg`.
pub(super) fn body(payload: &[u8]) -> &[u8] {
    payload.get(NETFILTER_HEADER..).unwrap_or_default()
}

/// A string attribute, without the zero at its end.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.write(7, &mut bytes);
        bytes
    }

    #[test]
    fn a_table_is_deleted_with_these_bytes() {
        let mut expected = Vec::new();
        expected.extend_from_slice(&36_u32.to_ne_bytes());
        expected.extend_from_slice(&0x0a02_u16.to_ne_bytes());
        expected.extend_from_slice(&1_u16.to_ne_bytes());
        expected.extend_from_slice(&7_u32.to_ne_bytes());
        expected.extend_from_slice(&[0; 4]);
        expected.extend_from_slice(&[10, 0, 0, 0]);
        expected.extend_from_slice(&15_u16.to_ne_bytes());
        expected.extend_from_slice(&1_u16.to_ne_bytes());
        expected.extend_from_slice(b"kube-proxy\0\0");
        assert_eq!(written(&Message::delete_table(Family::Ipv6, "kube-proxy")), expected);
    }

    #[test]
    fn a_rule_is_named_by_its_chain_and_handle() {
        let bytes = written(&Message::delete_rule(Family::Ipv4, "nat", "OUTPUT", 0x0102_0304_0506_0708));
        let found: Vec<_> = attributes(body(&bytes[NETLINK_HEADER..])).collect();
        assert_eq!(found, [(1, &b"nat\0"[..]), (2, b"OUTPUT\0"), (3, &[1, 2, 3, 4, 5, 6, 7, 8])]);
        let flush = written(&Message::flush_chain(Family::Ipv4, "nat", "OUTPUT"));
        assert_eq!(attributes(body(&flush[NETLINK_HEADER..])).count(), 2, "no handle: all rules");
    }

    #[test]
    fn a_batch_is_of_nftables_and_of_one_generation() {
        let bytes = written(&Message::begin(0x0102_0304));
        assert_eq!(bytes[4..6], BATCH_BEGIN.to_ne_bytes());
        assert_eq!(bytes[16..20], [0, 0, 0, 10], "the subsystem, in network order");
        assert_eq!(attributes(body(&bytes[NETLINK_HEADER..])).collect::<Vec<_>>(), [(1, &[1, 2, 3, 4][..])]);
    }

    #[test]
    fn cut_attributes_are_no_attributes() {
        let bytes = Attributes::default().text(1, "nat").number(2, 9).0;
        assert_eq!(attributes(&bytes).count(), 2);
        assert_eq!(attributes(&bytes[..bytes.len() - 1]).count(), 1);
    }
}
