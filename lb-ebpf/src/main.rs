//! The programs: one entry point per hook, each a table from outcome to verdict (`programs`). The work is in the
//! modules, which are generic over the hook and over the IP family:
//!
//! | module | what it does |
//! |---|---|
//! | `path` | the walk of a packet: known flow, new flow, refusal |
//! | `packet` | parses headers into plain values; the only place that touches packet memory |
//! | `flow` | the flow table |
//! | `balance` | frontend → service → backend |
//! | `load` | how many flows a backend has |
//! | `affinity` | the backend of a client's last flow |
//! | `rewrite` | replaces addresses and ports, checksums included |
//! | `snat` | source ports for masquerading |
//! | `forward` | the way out of the node |
//! | `refuse` | RST, ICMP and `ICMPv6` port unreachable |
//! | `fragment` | what has no ports follows what has |
//! | `icmp` | errors about packets of known flows |
//! | `monitor` | events for whoever watches |
//! | `trace` | lines for the operator who asked for them |
//! | `socket` | the cgroup socket hooks |

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(unreachable_pub, reason = "what the object exports is `pub` by the rules of aya's macros")
)]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        linker_messages,
        reason = "bpf-linker tries a linker script of rustc's as a library before it finds the right one"
    )
)]

// rustfmt formats the modules that it finds here, and nothing else between these braces.
core::cfg_select! {
    target_arch = "bpf" => {
        mod affinity;
        mod balance;
        mod count;
        mod family;
        mod flow;
        mod forward;
        mod fragment;
        mod hook;
        mod icmp;
        mod load;
        mod maps;
        mod monitor;
        mod own;
        mod packet;
        mod path;
        mod programs;
        mod refuse;
        mod rewrite;
        mod snat;
        mod socket;
        mod trace;
    }
    _ => {
        /// `cargo build --workspace` compiles this package for the host, too, where it is empty.
        fn main() {}
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked: a test of lb-agent's looks for panics in the object.
    loop {}
}

/// Some helpers are only for programs under a GPL-compatible license (`gpl_only` in `kernel/bpf/helpers.c`).
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
