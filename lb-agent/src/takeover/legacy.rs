//! What kube-proxy left in the tables of iptables-legacy, which are not nftables': each is a blob that the kernel hands
//! out and takes whole (`include/uapi/linux/netfilter_ipv4/ip_tables.h`).

use std::{
    fs, io, mem,
    os::fd::{AsRawFd as _, OwnedFd},
    ptr,
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{
    TakeoverError,
    message::Family,
    names::{ENTRIES, INNER, IPTABLES_TABLES, PREFIXES, is_kube_proxys},
};

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`; the same numbers in both families.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `struct ipt_get_entries` up to its entries, which are aligned to 8 bytes.
const ENTRIES_HEADER: usize = 40;
/// `struct xt_entry_target`: a length in 2 bytes, a name in 29, a revision.
const TARGET_NAME: std::ops::Range<usize> = 2..31;
/// Behind it, of a target `ERROR`: the name of the chain that begins there.
const CHAIN_NAME: std::ops::Range<usize> = 32..62;

/// A table of iptables-legacy in which kube-proxy left chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyTable {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: String,
    /// Chains of kube-proxy.
    pub chains: Vec<String>,
}

impl LegacyTable {
    /// The shell command that removes kube-proxy's chains and the rules that lead to them, and nothing else.
    pub fn command(&self) -> String {
        let Self { family, table, .. } = self;
        let iptables = if *family == Family::Ipv4 { "iptables-legacy" } else { "ip6tables-legacy" };
        let names: Vec<&str> = ENTRIES.iter().chain(&INNER).copied().collect();
        let names = format!("{}|({})[A-Z2-7]{{16}}", names.join("|"), PREFIXES.join("|"));
        format!(
            "{iptables}-save -c -t {table} | grep -vE '(^:|-A |-[jg] )({names})( |$)' | {iptables}-restore -c -T {table}"
        )
    }
}

/// `struct ipt_getinfo`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// Looks at the tables that exist. Asking for others would make them.
pub(super) fn find() -> Result<Vec<LegacyTable>, TakeoverError> {
    let mut found = Vec::new();
    for (family, list) in [(Family::Ipv4, "/proc/net/ip_tables_names"), (Family::Ipv6, "/proc/net/ip6_tables_names")] {
        // A kernel without iptables-legacy has no such file.
        let names = fs::read_to_string(list).unwrap_or_default();
        for table in names.lines().filter(|name| IPTABLES_TABLES.contains(name)) {
            let entries = entries(family, table).map_err(|source| TakeoverError::List {
                what: format!("iptables-legacy table {table} of {}", family.name()),
                source,
            })?;
            let mut chains = chains(family, &entries);
            chains.retain(|chain| is_kube_proxys(chain));
            if !chains.is_empty() {
                found.push(LegacyTable { family, table: table.to_owned(), chains });
            }
        }
    }
    Ok(found)
}

fn entries(family: Family, table: &str) -> io::Result<Vec<u8>> {
    let domain = if family == Family::Ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // Any socket of the family will do; a raw one would need a capability that the agent does not have.
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; NAME];
    name[..table.len()].copy_from_slice(table.as_bytes());
    let mut info = [Info { name, ..Info::default() }];
    get(family, &socket, GET_INFO, &mut info)?;
    let size = info[0].size;
    let mut buffer = vec![0; ENTRIES_HEADER + size as usize];
    buffer[..NAME].copy_from_slice(&name);
    buffer[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    get(family, &socket, GET_ENTRIES, &mut buffer)?;
    Ok(buffer.split_off(ENTRIES_HEADER))
}

fn get<T: Copy>(family: Family, socket: &OwnedFd, option: libc::c_int, value: &mut [T]) -> io::Result<()> {
    let level = if family == Family::Ipv4 { libc::SOL_IP } else { libc::SOL_IPV6 };
    let mut length = libc::socklen_t::try_from(mem::size_of_val(value)).map_err(io::Error::other)?;
    let (fd, value) = (socket.as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `value`; any bytes are valid for the plain
    // integers of `Info` and for bytes, the two types that this is called with.
    let result = unsafe { libc::getsockopt(fd, level, option, value, ptr::from_mut(&mut length)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The user's chains of a blob: each begins with an entry whose target is `ERROR` and names it.
fn chains(family: Family, mut entries: &[u8]) -> Vec<String> {
    // `target_offset` in `struct ipt_entry` and `struct ip6t_entry`; `next_offset` follows.
    let offsets = if family == Family::Ipv4 { 88 } else { 140 };
    let half = |bytes: &[u8], at: usize| Some(usize::from(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    let mut chains = Vec::new();
    while let (Some(target), Some(next)) = (half(entries, offsets), half(entries, offsets + 2)) {
        let target = entries.get(target..next).unwrap_or_default();
        if target.get(TARGET_NAME).map(text).as_deref() == Some("ERROR") {
            chains.extend(target.get(CHAIN_NAME).map(text));
        }
        if next == 0 {
            break;
        }
        entries = entries.get(next..).unwrap_or_default();
    }
    // The last entry is the table's end, not a chain.
    chains.pop();
    chains
}

/// What a fixed field holds up to its first zero.
fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(header: u16, target: &str, chain: &str) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(header) + 64];
        let offsets = if header == 112 { 88 } else { 140 };
        bytes[offsets..offsets + 2].copy_from_slice(&header.to_ne_bytes());
        bytes[offsets + 2..offsets + 4].copy_from_slice(&(header + 64).to_ne_bytes());
        let at = usize::from(header);
        bytes[at + 2..at + 2 + target.len()].copy_from_slice(target.as_bytes());
        bytes[at + 32..at + 32 + chain.len()].copy_from_slice(chain.as_bytes());
        bytes
    }

    #[test]
    fn chains_are_read_from_blobs_of_both_families() {
        for (family, header) in [(Family::Ipv4, 112), (Family::Ipv6, 168)] {
            let blob = [
                entry(header, "", ""),
                entry(header, "ERROR", "KUBE-SERVICES"),
                entry(header, "DNAT", "KUBE-MARK-MASQ"),
                entry(header, "ERROR", "MINE"),
                entry(header, "ERROR", "ERROR"),
            ];
            assert_eq!(chains(family, &blob.concat()), ["KUBE-SERVICES", "MINE"], "{family:?}");
            assert_eq!(chains(family, &blob.concat()[..300]), [""; 0], "cut short");
        }
    }

    #[test]
    fn structures_are_as_long_as_the_kernels() {
        assert_eq!(mem::size_of::<Info>(), 84);
    }
}
