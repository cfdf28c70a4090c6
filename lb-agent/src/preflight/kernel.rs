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
    // The size of the tables is not what is asked.
    let sizes = TableSizes { flows: 64, frontends: 64, services: 64, slots: 64, backends: 64 };
    match Loaded::load(&LoadOptions { sizes, ..LoadOptions::default() }) {
        Ok(loaded) => {
            let accepted = format!("{} programs accepted by the verifier", PROGRAMS.len());
            vec![Check::ok("programs", accepted), jit(&loaded)]
        }
        Err(error) => {
            // A verifier's log is long, and says what matters in the end.
            let error = error.to_string();
            let lines: Vec<_> = error.lines().filter(|line| !line.trim().is_empty()).collect();
            let found = match &lines[..] {
                [first, .., last] => format!("{first} … {last}"),
                _ => error.clone(),
            };
            let remedy = "please report it, with the whole message that `lb-agent run` ends with on this node";
            vec![Check::failure("programs", found, remedy), jit_by_sysctl()]
        }
    }
}

fn jit(loaded: &Loaded) -> Check {
    let sizes = PROGRAMS.iter().map(|name| Some(loaded.program(name)?.info().ok()?.size_jitted()));
    match sizes.collect::<Option<Vec<u32>>>() {
        Some(sizes) if sizes.iter().all(|size| *size > 0) => {
            Check::ok("jit", format!("on: the programs are {} KiB of machine code", sizes.iter().sum::<u32>() >> 10))
        }
        Some(_) => Check::warning("jit", "off: the programs are interpreted", JIT_REMEDY),
        None => jit_by_sysctl(),
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
