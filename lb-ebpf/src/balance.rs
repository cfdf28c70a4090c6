//! From a frontend to a backend.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated::bpf_get_smp_processor_id};
use lb_common::{
    abi::{
        Address, AffinityKey, Backend, BackendFlags, Config, Frontend, FrontendFlags, FrontendKey, LIST_BITS,
        LocalAddressFlags, LocalAddressKey, Reason, Service, ServiceFlags, Slot, SlotRange, SourceRange,
    },
    hash,
};

use crate::{affinity, count, family::Family, load, maps::CONFIG};

/// A backend that was picked.
#[repr(C)]
pub struct Picked<A> {
    /// Index in `BACKENDS*`.
    pub index: u32,
    /// Its value, read whole.
    pub backend: Backend<A>,
}

/// What an address, port and protocol are to us.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum What {
    Nothing,
    Frontend,
    /// A frontend that is being written.
    Raced,
    /// A cluster IP that nobody has.
    Unallocated,
}

/// What was found. Not a `Result` of an `Option`: where the compiler merges the paths of these, it copies registers that
/// only one of them has written, and the verifier refuses the program.
#[derive(Clone, Copy)]
struct Found {
    what: What,
    /// Empty unless it is one.
    frontend: Frontend,
}

impl Found {
    #[inline(always)]
    fn only(what: What) -> Self {
        Self { what, frontend: Frontend { service: 0, owner: 0, flags: 0, edition: 0 } }
    }
}

/// Finds the frontend that an address, port and protocol name. `own_loopback`: node ports on a loopback address count,
/// because the asker is a process of the node itself.
///
/// A cluster IP answers for the ports that its Service does not have: what is found then is the address itself, marked
/// [`FrontendFlags::CLUSTER_IP`], and [`pick`] refuses it.
#[inline(always)]
pub fn frontend<F: Family>(
    address: F::Address,
    port: u16,
    protocol: u8,
    own_loopback: bool,
) -> Result<Option<Frontend>, Reason> {
    let Found { what, frontend } = find::<F>(address, port, protocol, own_loopback);
    match what {
        What::Nothing => Ok(None),
        What::Frontend => Ok(Some(frontend)),
        What::Raced => Err(Reason::FrontendRaced),
        What::Unallocated => Err(Reason::UnallocatedClusterIp),
    }
}

#[inline(always)]
fn find<F: Family>(address: F::Address, port: u16, protocol: u8, own_loopback: bool) -> Found {
    let nothing = Found::only(What::Nothing);
    // The unspecified address is the key of node ports, and nobody's destination: `connect` turns it into loopback.
    if address == F::Address::UNSPECIFIED {
        return nothing;
    }
    let found = lookup::<F>(&FrontendKey::new(address, port, protocol));
    if found.what != What::Nothing {
        return found;
    }
    let Some(config) = CONFIG.get(0) else { return nothing };
    let is_node_port = port >= config.node_port_min && port <= config.node_port_max;
    let unserved = if F::cluster_ips(config).contains(address) { cluster_ip::<F>(address) } else { nothing };
    if unserved.what == What::Nothing && !is_node_port {
        return nothing;
    }
    // What the node has itself is its own to answer for (a DNS cache that listens at a cluster IP), as kube-proxy sees to such
    // packets only where they are forwarded (`cluster-ips-check` in `pkg/proxy/nftables/proxier.go`).
    // SAFETY: the value is one word; an element that was reused meanwhile is still an address of this node.
    let Some(own) = (unsafe { F::local_addresses().get(&LocalAddressKey { address }).copied() }) else {
        return unserved;
    };
    let answers = own.flags & LocalAddressFlags::NODE_PORTS != 0
        && (own.flags & LocalAddressFlags::LOOPBACK == 0 || own_loopback);
    if !is_node_port || !answers {
        return nothing;
    }
    lookup::<F>(&FrontendKey::new(F::Address::UNSPECIFIED, port, protocol))
}

#[inline(always)]
fn lookup<F: Family>(key: &FrontendKey<F::Address>) -> Found {
    let Some(value) = F::frontends().get_ptr(key) else { return Found::only(What::Nothing) };
    // SAFETY: one aligned word, read at once, whatever is written to it meanwhile.
    let frontend: Frontend = unsafe { core::mem::transmute(core::ptr::read_volatile(value.cast::<u64>())) };
    if frontend.owner == hash::frontend_owner(key) {
        Found { what: What::Frontend, frontend }
    } else {
        Found::only(What::Raced)
    }
}

/// What an address of the cluster IPs' network is for that has no frontend on the port that was asked.
#[inline(always)]
fn cluster_ip<F: Family>(address: F::Address) -> Found {
    let found = lookup::<F>(&FrontendKey::new(address, 0, 0));
    if found.what != What::Nothing {
        return found;
    }
    match F::service_cidrs().get(&Key::new(F::BITS, address)) {
        Some(_) => Found::only(What::Unallocated),
        // The one network that holds all cluster IPs holds others' addresses, too, where these lie far apart.
        None => found,
    }
}

/// Whether only some clients may use a frontend.
#[inline(always)]
pub fn is_restricted(frontend: Frontend) -> bool {
    frontend.flags & FrontendFlags::SOURCE_RANGES != 0
}

/// Whether a client may use a frontend that [`is_restricted`].
#[inline(always)]
pub fn is_allowed<F: Family>(frontend: Frontend, client: F::Address) -> bool {
    let range = SourceRange { service: frontend.service, edition: frontend.edition.into(), client };
    F::source_ranges().get(&Key::new(LIST_BITS + F::BITS, range)).is_some()
}

/// Which of a service's two ranges a frontend uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// Backends in the whole cluster.
    Cluster,
    /// Backends on this node.
    Local,
}

impl List {
    /// The list of a frontend. `is_inside` is asked only where it matters: whether the asker is a pod or the node.
    #[inline(always)]
    pub fn of(frontend: Frontend, is_inside: impl FnOnce(&Config) -> bool) -> Self {
        if frontend.flags & FrontendFlags::LOCAL == 0
            || frontend.flags & FrontendFlags::EXTERNAL != 0 && CONFIG.get(0).is_some_and(is_inside)
        {
            Self::Cluster
        } else {
            Self::Local
        }
    }

    /// The service's other list.
    #[inline(always)]
    const fn other(self) -> Self {
        match self {
            Self::Cluster => Self::Local,
            Self::Local => Self::Cluster,
        }
    }

    /// The mark of backends that are in the list.
    #[inline(always)]
    pub const fn mark(self) -> u16 {
        match self {
            Self::Cluster => BackendFlags::IN_CLUSTER,
            Self::Local => BackendFlags::IN_LOCAL,
        }
    }
}

/// Picks a backend for a new flow: the one of the client's last flow where the service has affinity, else the one whose
/// turn it is, or by a hash of the flow or the socket, or of two by that hash the one that has fewer flows. `client` is asked
/// only where there is affinity; its list is filled in here.
#[inline(always)]
pub fn pick<F: Family>(
    frontend: Frontend,
    list: List,
    hash: u32,
    client: impl FnOnce() -> AffinityKey<F::Address>,
) -> Result<Picked<F::Address>, Reason> {
    if frontend.flags & FrontendFlags::CLUSTER_IP != 0 {
        return Err(Reason::UndefinedPort);
    }
    let service = F::services().get_ptr(frontend.service).ok_or(Reason::TablesInconsistent)?;
    // SAFETY: array elements live as long as the map.
    let affinity_seconds = unsafe { (*service).affinity_seconds };
    if affinity_seconds == 0 {
        return select::<F>(frontend.service, service, list, hash);
    }
    let mut client = client();
    client.list = list.other().mark().into();
    let elsewhere = client;
    client.list = list.mark().into();
    if let Some(picked) = affinity::find::<F>(&client, affinity_seconds, list) {
        return Ok(picked);
    }
    // The client's first flow by a frontend of this list: where it went by one of the other.
    let picked = match affinity::find::<F>(&elsewhere, affinity_seconds, list) {
        Some(picked) => picked,
        None => select::<F>(frontend.service, service, list, hash)?,
    };
    affinity::enter::<F>(&client, &picked);
    Ok(picked)
}

/// Times that a service is read again when its backend went away under the reader's eyes.
const ATTEMPTS: usize = 2;

/// The agent may publish a new set between the steps; a backend that is gone by the time it is read sends the reader
/// back to the service, which by then names the new set.
#[inline(always)]
fn select<F: Family>(index: u32, service: *const Service, list: List, hash: u32) -> Result<Picked<F::Address>, Reason> {
    for _ in 0..ATTEMPTS {
        // SAFETY: array elements live as long as the map.
        let flags = unsafe { (*service).flags };
        let range = slots(service, list);
        let slot = if flags & ServiceFlags::ROUND_ROBIN != 0 {
            range.at_turn(turn::<F>(index))
        } else if flags & ServiceFlags::LEAST_CONN != 0 {
            less_loaded::<F>(range, hash)
        } else {
            range.pick(hash)
        };
        let Some(slot) = slot else {
            let has_endpoints = flags & ServiceFlags::HAS_ENDPOINTS != 0;
            return Err(if has_endpoints { Reason::NoLocalEndpoints } else { Reason::NoEndpoints });
        };
        let Slot { backend: index } = *F::slots().get(slot).ok_or(Reason::TablesInconsistent)?;
        if let Some(backend) = backend::<F>(index) {
            return Ok(Picked { index, backend });
        }
    }
    Err(Reason::TablesInconsistent)
}

/// Whose turn it is: the number of flows that this CPU has given a backend of the service. Each CPU begins elsewhere, so
/// that few flows do not all go to the first backends.
#[inline(always)]
fn turn<F: Family>(service: u32) -> u32 {
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    count::flows::<F>(service).wrapping_add(cpu)
}

/// The power of two choices (Mitzenmacher, IEEE TPDS 12(10), 2001): of two slots that the hash names, that whose backend
/// has fewer flows; of equals the one that the hash alone picks.
#[inline(always)]
fn less_loaded<F: Family>(range: SlotRange, hash: u32) -> Option<u32> {
    let [first, second] = range.pick_two(hash)?;
    let (Some(one), Some(other)) = (F::slots().get(first), F::slots().get(second)) else { return Some(first) };
    Some(if load::is_second_less::<F>(one.backend, other.backend) { second } else { first })
}

/// One of a service's ranges: one aligned word, read at once.
#[inline(always)]
fn slots(service: *const Service, list: List) -> SlotRange {
    // SAFETY: array elements live as long as the map; `SlotRange` is 8 aligned bytes without padding.
    unsafe {
        let range = match list {
            List::Cluster => &raw const (*service).cluster,
            List::Local => &raw const (*service).local,
        };
        core::mem::transmute(core::ptr::read_volatile(range.cast::<u64>()))
    }
}

/// Reads a backend whole: see [`Backend`] for the order in which it is written.
#[inline(always)]
pub fn backend<F: Family>(index: u32) -> Option<Backend<F::Address>> {
    let element = F::backends().get_ptr(index)?;
    // SAFETY: array elements live as long as the map.
    unsafe {
        let before = core::ptr::read_volatile(&raw const (*element).generation);
        compiler_fence(Ordering::SeqCst);
        let backend = *element;
        compiler_fence(Ordering::SeqCst);
        let after = core::ptr::read_volatile(&raw const (*element).generation);
        (before != 0 && before == after).then_some(Backend { generation: before, ..backend })
    }
}

/// The backend of a flow or an exchange, if its index has not been given to another endpoint since.
#[inline(always)]
pub fn current<F: Family>(index: u32, generation: u32) -> Option<&'static Backend<F::Address>> {
    F::backends().get(index).filter(|backend| backend.generation == generation)
}
