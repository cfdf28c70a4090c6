//! What must hold for any packet, and for the programs as such.

use std::{collections::HashSet, fmt::Write as _};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use bytes::Bytes;
use lb_agent::{jiffies::Jiffies, loader::PROGRAMS};
use lb_common::abi::{Affinity, AffinityKey, Hook, Reason};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::{
    Dataplane, TestService, Verdict,
    dataplane::{Arrival, ClientAddress, HOOKS},
    diff,
    rows::{Case, at, mixed_tables},
    xdp::Action,
};

/// Packets of the property test.
const PACKETS: u32 = 20_000;

/// Numbers that look random and are the same in every run (xorshift64, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }
}

/// Runs packets of the rows with a few bytes changed, cut or added. Whatever the programs make of them, a packet that
/// they pass without translating it is the same byte by byte; one that they translate has the length it had, differs in
/// its headers only and keeps its checksums as right or wrong as they were; only a refusal may change the length.
pub fn mutated_packets(dataplane: &mut Dataplane, arrivals: &[Arrival], seed: u64) -> Result<Statistics> {
    let mut numbers = Numbers(seed);
    let mut statistics = Statistics::default();
    dataplane.forget()?;
    dataplane.fill(&mixed_tables())?;
    let mut refusals_before = 0;
    for number in 0..PACKETS {
        let mut arrival = arrivals[numbers.below(arrivals.len())].clone();
        arrival.packet = mutate(&arrival.packet, &mut numbers);
        arrival.hook = HOOKS[numbers.below(HOOKS.len())];
        arrival = arrival.addressed();
        if arrival.hook == Hook::UplinkIngress && arrival.gso_size == 0 && numbers.below(2) == 0 {
            match at_xdp(dataplane, &arrival, &format!("packet {number} of seed {seed}")) {
                AtXdp::Left => {}
                AtXdp::Finished => {
                    statistics.finished_at_xdp += 1;
                    continue;
                }
            }
        }
        let Ok(outcome) = dataplane.run(&arrival, 1) else {
            // The kernel itself takes no untagged packet without a whole IP header.
            assert!(arrival.packet.len() < 14 + 40, "packet {number} of seed {seed}: {:02x?}", &arrival.packet[..]);
            statistics.refused_by_the_kernel += 1;
            continue;
        };
        let complain = |what: &str| -> ! {
            panic!(
                "packet {number} of seed {seed}, {:?}, {:?}: {what}\n{}",
                arrival.hook,
                outcome.verdict,
                diff::difference(&arrival.packet, &outcome.packet).unwrap_or_default()
            )
        };
        let refusals: u64 = [Reason::NoEndpoints, Reason::UndefinedPort, Reason::TooBig, Reason::TtlExpired]
            .into_iter()
            .map(|reason| dataplane.counter(reason))
            .sum();
        let refused = refusals > refusals_before;
        refusals_before = refusals;
        let changed = outcome.packet != arrival.packet;
        match outcome.verdict {
            Verdict::Next if !changed => statistics.passed += 1,
            Verdict::Next | Verdict::Redirect if outcome.packet.len() == arrival.packet.len() && !refused => {
                statistics.translated += 1;
                if diff::wrong_checksums(&arrival.packet) != diff::wrong_checksums(&outcome.packet) {
                    complain("translation made a checksum wrong or right");
                }
                let rewritable = 14 + 8 + 40 + 8 * 64 + 20;
                let (before, after) = (arrival.packet.get(rewritable..), outcome.packet.get(rewritable..));
                if before != after {
                    complain("the data changed");
                }
            }
            Verdict::Redirect if refused => {
                statistics.refused += 1;
                if !diff::wrong_checksums(&outcome.packet).is_empty() {
                    complain("a refusal with a wrong checksum");
                }
            }
            Verdict::Drop => statistics.dropped += 1,
            Verdict::Next | Verdict::Redirect => complain("another length without a refusal"),
            Verdict::Other(_) => complain("a verdict that nobody gives"),
        }
    }
    Ok(statistics)
}

/// Who has the last word on a packet.
enum AtXdp {
    Finished,
    Left,
}

/// Shows a packet to XDP: it is left as it is, and not counted, or finished.
fn at_xdp(dataplane: &Dataplane, arrival: &Arrival, name: &str) -> AtXdp {
    let before = dataplane.counters();
    let Ok(outcome) = dataplane.run_xdp(arrival, 1) else {
        assert!(arrival.packet.len() < 14 + 40, "{name}: {:02x?}", &arrival.packet[..]);
        return AtXdp::Left;
    };
    let changed = outcome.packet != arrival.packet;
    let counted = dataplane.counters() != before;
    let difference = diff::difference(&arrival.packet, &outcome.packet).unwrap_or_default();
    let says =
        format!("{name} at XDP, {:?}, mark {:x?}, counted: {counted}\n{difference}", outcome.action, outcome.mark);
    assert_eq!(outcome.mark.is_some(), changed && outcome.action == Action::Pass, "{says}");
    match outcome.action {
        Action::Pass if !changed => {
            assert!(!counted, "{says}");
            return AtXdp::Left;
        }
        Action::Pass | Action::Return | Action::Redirect => {
            assert!(!counted && changed && outcome.packet.len() == arrival.packet.len(), "{says}");
            let [before, after] = [&arrival.packet, &outcome.packet].map(|packet| diff::wrong_checksums(packet));
            assert_eq!(before, after, "{says}");
            assert_eq!(arrival.packet.get(14 + 40 + 20..), outcome.packet.get(14 + 40 + 20..), "{says}");
        }
        Action::Drop => assert!(counted, "{says}"),
        Action::Other(_) => panic!("{says}"),
    }
    AtXdp::Finished
}

/// A way out by another device is taken at XDP where its driver can send what is redirected to it, and else at TC.
pub fn other_devices_need_a_driver(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    let arrival = Arrival {
        hook: Hook::UplinkIngress,
        interface: super::Interface::Uplink,
        packet: case.first_to_node_port().bytes(),
        gso_size: 0,
    }
    .addressed();
    for (redirects, action) in [(false, Action::Pass), (true, Action::Redirect)] {
        dataplane.forget()?;
        dataplane.fill(&case.one_narrow())?;
        dataplane.set_xdp(redirects)?;
        let outcome = dataplane.run_xdp(&arrival, 1)?;
        assert_eq!(outcome.action, action);
        assert_eq!(outcome.packet == arrival.packet, !redirects);
        assert_eq!(
            dataplane.flows::<[u8; 4]>()?.len() + dataplane.flows::<[u8; 16]>()?.len(),
            2 * usize::from(redirects)
        );
    }
    Ok(())
}

fn mutate(packet: &Bytes, numbers: &mut Numbers) -> Bytes {
    let mut frame = packet.to_vec();
    for _ in 0..numbers.below(4) {
        let position = match numbers.below(4) {
            // Any byte; or one of the headers, where it matters more.
            0 => numbers.below(frame.len()),
            _ => numbers.below(frame.len().min(80)),
        };
        frame[position] = match numbers.below(3) {
            0 => frame[position] ^ (1 << numbers.below(8)),
            1 => [0, 1, 0x7f, 0x80, 0xff][numbers.below(5)],
            _ => u8::try_from(numbers.below(256)).expect("below 256"),
        };
    }
    match numbers.below(8) {
        0 => frame.truncate(14 + numbers.below(frame.len() - 13)),
        1 => frame.extend((0..numbers.below(64)).map(|_| 0xaa)),
        _ => {}
    }
    frame.into()
}

/// What became of the packets of [`mutated_packets`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Left alone.
    pub passed: u32,
    /// Given other addresses.
    pub translated: u32,
    /// Answered.
    pub refused: u32,
    /// Dropped.
    pub dropped: u32,
    /// Dropped, translated or sent at XDP.
    pub finished_at_xdp: u32,
    /// Never shown to a program.
    pub refused_by_the_kernel: u32,
}

/// Flows of [`flows_spread_and_return`].
const FLOWS: u16 = 256;

/// Many flows to two backends use both about evenly, and each finds its backend again after the flow table forgot it.
pub fn flows_spread_and_return(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    dataplane.forget()?;
    dataplane.fill(&case.two_backends())?;
    let mut picks = [Vec::new(), Vec::new()];
    for pick in &mut picks {
        for port in 0..FLOWS {
            pick.push(backend_of(dataplane, case, 40_000 + port)?);
        }
        dataplane.forget()?;
    }
    let [before, after] = picks;
    assert_eq!(before, after, "a flow that was forgotten went elsewhere");
    let backends: HashSet<_> = before.iter().collect();
    assert_eq!(backends.len(), 2);
    for backend in backends {
        let share = before.iter().filter(|picked| *picked == backend).count();
        // 128 ± 40 is five standard deviations of a fair choice among 256.
        assert!((88..=168).contains(&share), "{share} of {FLOWS} flows went to {backend:?}");
    }
    Ok(())
}

/// Flows of a Service with round-robin go to its backends in turn, on one CPU.
pub fn flows_take_turns(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    dataplane.forget()?;
    let mut tables = case.two_backends();
    tables.services = tables.services.into_iter().map(TestService::round_robin).collect();
    dataplane.fill(&tables)?;
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread)?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|cpu| before.is_set(*cpu) == Ok(true)).context("no CPU")?)?;
    sched_setaffinity(this_thread, &one)?;
    let picks: Result<Vec<_>> = (0..FLOWS).map(|port| backend_of(dataplane, case, 40_000 + port)).collect();
    sched_setaffinity(this_thread, &before)?;
    let picks = picks?;
    assert_ne!(picks[0], picks[1]);
    for (position, pick) in picks.iter().enumerate() {
        assert_eq!(*pick, picks[position % 2], "flow {position}");
    }
    // A known flow stays where it is.
    let again: Vec<_> = (0..FLOWS).map(|port| backend_of(dataplane, case, 40_000 + port)).collect::<Result<_>>()?;
    assert_eq!(again, picks);
    Ok(())
}

/// Seconds of the affinity of [`affinity_expires`].
const AFFINITY: u32 = 60;

/// A client's new flows go to one endpoint while its affinity lasts, each from the last one on; when it has ended they go
/// where their hash sends them.
pub fn affinity_expires(dataplane: &mut Dataplane, case: Case) -> Result<()> {
    let mut tables = case.two_backends();
    tables.services = tables.services.into_iter().map(|service| service.affinity(AFFINITY)).collect();
    let mut picks = |age: u64| -> Result<Vec<Bytes>> {
        dataplane.forget()?;
        dataplane.fill(&tables)?;
        let mut picks = Vec::new();
        for port in 0..32 {
            age_affinities(dataplane, age)?;
            picks.push(backend_of(dataplane, case, 40_000 + port)?);
        }
        Ok(picks)
    };
    let young = picks(u64::from(AFFINITY) - 5)?;
    assert_eq!(HashSet::<&Bytes>::from_iter(&young).len(), 1, "each flow was within the time of the one before it");
    let old = picks(u64::from(AFFINITY) + 5)?;
    assert_eq!(HashSet::<&Bytes>::from_iter(&old).len(), 2, "no flow was");
    // The same flows, by their hash alone.
    tables.services = case.two_backends().services;
    dataplane.forget()?;
    dataplane.fill(&tables)?;
    let hashed = (0..32).map(|port| backend_of(dataplane, case, 40_000 + port)).collect::<Result<Vec<_>>>()?;
    assert_eq!(old, hashed);
    Ok(())
}

/// Makes all affinities look older by some seconds.
pub fn age_affinities(dataplane: &mut Dataplane, seconds: u64) -> Result<()> {
    age_affinities_of::<[u8; 4]>(dataplane, seconds)?;
    age_affinities_of::<[u8; 16]>(dataplane, seconds)
}

fn age_affinities_of<A: ClientAddress>(dataplane: &mut Dataplane, seconds: u64) -> Result<()>
where
    AffinityKey<A>: Pod,
{
    let ticks = seconds * Jiffies::now()?.per_second;
    for (key, affinity) in dataplane.affinities::<A>()? {
        let older = Affinity { last_used: affinity.last_used - ticks, ..affinity };
        A::affinity_table(dataplane).insert(&key, &older, 0)?;
    }
    Ok(())
}

/// The address of the backend that a pod's new flow from this port is given.
fn backend_of(dataplane: &Dataplane, case: Case, port: u16) -> Result<Bytes> {
    let packet = case.later(at(case.net.pod, port), case.cluster_ip()).bytes();
    let arrival = Arrival { hook: Hook::PodIngress, interface: super::Interface::Pod, packet, gso_size: 0 }.addressed();
    let outcome = dataplane.run(&arrival, 1)?;
    assert_eq!(outcome.verdict, Verdict::Next, "flow {port}");
    assert_ne!(outcome.packet, arrival.packet, "flow {port} was not translated");
    let destination = if case.net.pod.is_ipv4() { 30..34 } else { 38..54 };
    Ok(outcome.packet.slice(destination))
}

/// Instructions of each program that the verifier may walk, a third above what it does (the most of Linux 6.1, 6.12 and
/// 6.18). Nearly all of an agent's start is its time, about a microsecond each.
const WALKED: [(&str, u32); PROGRAMS.len()] = [
    ("pod_ingress", 171_000),
    ("pod_egress", 89_000),
    ("uplink_ingress", 171_000),
    ("uplink_egress", 89_000),
    ("bare_ingress", 142_000),
    ("bare_egress", 71_000),
    ("uplink_xdp", 64_000),
    ("connect4", 42_000),
    ("connect6", 94_000),
    ("getpeername4", 100),
    ("getpeername6", 200),
    ("sendmsg4", 33_000),
    ("sendmsg6", 45_000),
    ("recvmsg4", 200),
    ("recvmsg6", 400),
];

/// That the verifier's work has not jumped. Gives the programs' sizes, for people.
pub fn sizes(dataplane: &Dataplane) -> Result<String> {
    let mut lines = String::from("program           verified  at most  translated (instructions, instructions, bytes)");
    let mut jumped = Vec::new();
    for (name, at_most) in WALKED {
        let info = dataplane.loaded.program(name).with_context(|| format!("no {name}"))?.info()?;
        let (verified, size) = (info.verified_instruction_count(), info.size_translated());
        let number = |value: Option<u32>| value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
        let _ = write!(lines, "\n{name:<15} {:>10} {at_most:>8} {:>11}", number(verified), number(size));
        if verified.is_some_and(|verified| verified > at_most) {
            jumped.push(name);
        }
    }
    ensure!(jumped.is_empty(), "more for the verifier in {}:\n{lines}", jumped.join(", "));
    Ok(lines)
}
