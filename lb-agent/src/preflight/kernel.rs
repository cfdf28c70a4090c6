//! The kernel, and what this process may do.

use std::fs;

use super::Check;
use crate::loader::{self, LoadOptions, Loaded, LoaderError, PROGRAMS, TableSizes};

/// 0 = interpreted. Shown in the initial network namespace only (`net/core/sysctl_net_core.c`).
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";
const JIT_REMEDY: &str =
    "do `sysctl -w net.core.bpf_jit_enable=1`: programs that are interpreted are several times slower";

/// What is asked before anything is loaded.
pub(super) fn checks() -> Vec<Check> {
    let kernel = match loader::check_kernel() {
        Ok(release) => Check::ok("kernel", release),
        Err(error) => failure("kernel", &error, "boot a kernel from 6.1 on"),
    };
    let btf = match loader::check_btf() {
        Ok(path) => Check::ok("btf", path),
        Err(error) => failure("btf", &error, "boot a kernel that was built with CONFIG_DEBUG_INFO_BTF=y"),
    };
    let capabilities = match loader::check_own_capabilities() {
        Ok(()) => Check::ok("capabilities", "BPF, NET_ADMIN and PERFMON"),
        Err(error) => failure(
            "capabilities",
            &error,
            "run as root, or give the process (securityContext.capabilities.add) BPF, NET_ADMIN and PERFMON",
        ),
    };
    vec![kernel, btf, capabilities]
}

fn failure(check: &'static str, error: &LoaderError, remedy: &str) -> Check {
    Check::failure(check, error.to_string(), remedy)
}

/// Has the verifier see the programs, without attaching or pinning any, and looks whether they were compiled.
pub(super) fn load() -> Vec<Check> {
    const CHECK: &str = "programs";
    // The size of the tables is not what is asked.
    let sizes = TableSizes { flows: 64, frontends: 64, services: 64, slots: 64, backends: 64 };
    let load = |xdp| Loaded::load(&LoadOptions { sizes, xdp, ..LoadOptions::default() });
    match load(true) {
        Ok(loaded) => {
            let accepted = format!("{} programs accepted by the verifier", PROGRAMS.len());
            vec![Check::ok(CHECK, accepted), jit(&loaded)]
        }
        Err(error) => match load(false) {
            Ok(loaded) => {
                vec![Check::warning(CHECK, without_log(&error), "leave --xdp off: TC serves all devices"), jit(&loaded)]
            }
            Err(error) => {
                let remedy = "please report it, with the whole message that `lb-agent run` ends with on this node";
                vec![Check::failure(CHECK, without_log(&error), remedy), jit_by_sysctl()]
            }
        },
    }
}

/// What the verifier said last. Its log is long, and ends with what it cost.
fn without_log(error: &LoaderError) -> String {
    shortened(&error.to_string())
}

fn shortened(error: &str) -> String {
    let is_cost =
        |line: &&str| ["processed ", "verification time ", "stack depth "].iter().any(|cost| line.starts_with(cost));
    let mut lines = error.lines().filter(|line| !line.trim().is_empty() && !is_cost(line));
    match (lines.next(), lines.next_back()) {
        (Some(first), Some(last)) => format!("{first} … {last}"),
        (first, _) => first.unwrap_or(error).to_owned(),
    }
}

fn jit(loaded: &Loaded) -> Check {
    let programs = PROGRAMS.iter().filter_map(|name| loaded.program(name)?.info().ok());
    let sizes: Vec<_> = programs.map(|program| program.size_jitted()).collect();
    if sizes.is_empty() {
        jit_by_sysctl()
    } else if sizes.contains(&0) {
        Check::warning("jit", "off: the programs are interpreted", JIT_REMEDY)
    } else {
        Check::ok("jit", format!("on: the programs are {} KiB of machine code", sizes.iter().sum::<u32>() >> 10))
    }
}

fn jit_by_sysctl() -> Check {
    match fs::read_to_string(JIT).as_deref().map(str::trim) {
        Ok("0") => Check::warning("jit", "net.core.bpf_jit_enable is 0", JIT_REMEDY),
        Ok(value) => Check::ok("jit", format!("net.core.bpf_jit_enable is {value}")),
        Err(error) => {
            Check::unknown("jit", format!("{JIT}: {error}"), "look on the node, in its own network namespace")
        }
    }
}

/// How programs will be attached to devices.
pub(super) fn device_hook() -> Check {
    let found = if loader::has_tcx() { "tcx" } else { "clsact: the kernel has no tcx, which came with 6.6" };
    Check::ok("device-hook", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifiers_log_the_reason_is_left() {
        let log = "loading program x: refused. Verifier output: 0: R1=ctx()\n1: (b7) r1 = 0\n\nR6 !read_ok\n\
                   verification time 248 usec\nstack depth 168+112\nprocessed 14725 insns (limit 1000000)\n";
        assert_eq!(shortened(log), "loading program x: refused. Verifier output: 0: R1=ctx() … R6 !read_ok");
        assert_eq!(shortened("no memory"), "no memory");
    }
}
