//! What the machine must offer, asked before anything is done to it.

use std::{fs, path::Path};

use super::LoaderError;

/// The oldest kernel: 6.1, a long-term release. The youngest helpers in use are `bpf_set_retval` (5.18) and
/// `bpf_redirect_neigh` (5.10).
const OLDEST_KERNEL: (u32, u32) = (6, 1);
const OLDEST_KERNEL_NAME: &str = "6.1";

const RELEASE: &str = "/proc/sys/kernel/osrelease";
const STATUS: &str = "/proc/self/status";
const BTF: &str = "/sys/kernel/btf/vmlinux";

// Numbers of `include/uapi/linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Checks the kernel's version, its BTF and our capabilities.
pub fn check() -> Result<(), LoaderError> {
    check_kernel()?;
    check_btf()?;
    check_own_capabilities()
}

/// Checks the kernel's version, and gives its release.
pub(crate) fn check_kernel() -> Result<String, LoaderError> {
    let release = read(RELEASE)?;
    check_release(&release)?;
    Ok(release.trim().to_owned())
}

/// Checks that the kernel has BTF, and says where.
pub(crate) fn check_btf() -> Result<&'static str, LoaderError> {
    if Path::new(BTF).exists() { Ok(BTF) } else { Err(LoaderError::NoBtf { path: BTF }) }
}

/// Checks our capabilities.
pub(crate) fn check_own_capabilities() -> Result<(), LoaderError> {
    check_capabilities(&read(STATUS)?)
}

fn read(path: &str) -> Result<String, LoaderError> {
    fs::read_to_string(path).map_err(|source| LoaderError::Kernel { path: path.to_owned(), source })
}

fn check_release(release: &str) -> Result<(), LoaderError> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    match numbers.next().zip(numbers.next()) {
        // A release that is not numbered tells nothing: the verifier will.
        None => Ok(()),
        Some(version) if version >= OLDEST_KERNEL => Ok(()),
        Some(_) => Err(LoaderError::KernelTooOld { found: release.trim().to_owned(), needed: OLDEST_KERNEL_NAME }),
    }
}

/// `status` is the text of `/proc/PID/status`.
fn check_capabilities(status: &str) -> Result<(), LoaderError> {
    let effective = effective_capabilities(status).unwrap_or(u64::MAX);
    let has = |capability: u32| effective & (1 << capability) != 0;
    let missing: Vec<_> = [("BPF", CAP_BPF, true), ("NET_ADMIN", CAP_NET_ADMIN, false), ("PERFMON", CAP_PERFMON, true)]
        .into_iter()
        .filter(|(_, capability, implied)| !(has(*capability) || (*implied && has(CAP_SYS_ADMIN))))
        .map(|(name, _, _)| name)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(LoaderError::Capabilities { missing }) }
}

/// The set of effective capabilities that the text of `/proc/PID/status` tells.
fn effective_capabilities(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// Whether we have `CAP_SYS_ADMIN`, as far as can be told.
pub(crate) fn has_sys_admin() -> bool {
    let effective = read(STATUS).ok().and_then(|status| effective_capabilities(&status));
    effective.is_some_and(|set| set & 1 << CAP_SYS_ADMIN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_1_are_refused_by_name() {
        for release in ["6.1.0-40-cloud-amd64", "6.1", "6.18.44-fc-v595", "7.0.0", "10.2", "custom"] {
            assert!(check_release(release).is_ok(), "{release}");
        }
        for release in ["5.15.0-generic", "6.0.19\n", "4.19"] {
            let error = check_release(release).expect_err(release).to_string();
            assert!(error.contains(release.trim()) && error.contains("6.1"), "{error}");
        }
    }

    #[test]
    fn each_missing_capability_is_named() {
        let status = |set: u64| format!("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{set:016x}\n");
        let (net, sys, perf, bpf) = (1 << CAP_NET_ADMIN, 1 << CAP_SYS_ADMIN, 1 << CAP_PERFMON, 1 << CAP_BPF);
        assert!(check_capabilities(&status(net | perf | bpf)).is_ok());
        assert!(check_capabilities(&status(net | sys)).is_ok());
        for (set, missing) in [(0, "BPF, NET_ADMIN, PERFMON are"), (net | bpf, "PERFMON is"), (sys, "NET_ADMIN is")] {
            let error = check_capabilities(&status(set)).expect_err(missing).to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}
