//! The eBPF object, as `build.rs` built it.

/// The ELF file, aligned for the parser.
pub static EBPF_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

#[cfg(test)]
mod tests {
    use super::EBPF_OBJECT;

    /// An indexing or an overflow that can panic loads as an error without a cause ("last insn is not an exit or jmp"), or
    /// not at all: the functions that panics call must not be in the object.
    #[test]
    fn nothing_in_the_object_can_panic() {
        for symbol in ["core9panicking", "panic_bounds_check", "panic_fmt", "unwrap_failed"] {
            let found = EBPF_OBJECT.windows(symbol.len()).any(|window| window == symbol.as_bytes());
            assert!(!found, "{symbol}");
        }
        // The names of functions that are there are found.
        assert!(EBPF_OBJECT.windows(11).any(|window| window == b"pod_ingress"));
    }
}
