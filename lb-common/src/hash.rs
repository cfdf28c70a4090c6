//! Hashes of flows and owners of map values.
//!
//! The programs and the agent must agree on them, every node must compute the same (the seed aside), and the BPF
//! target must compile them to a handful of multiplications: so they are written out here and pinned by test vectors
//! instead of taken from `core::hash`, whose results are not specified.
//!
//! They spread load; they do not resist an adversary. A client can choose its source port and so its backend, as it
//! can with any hash that all nodes share.

use crate::abi::{Address, FrontendKey, Tuple};

/// 2^64 divided by the golden ratio, made odd: the multiplier of Fibonacci hashing (Knuth, TAOCP 3, §6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): every input
/// bit changes every output bit with probability near one half.
#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[inline(always)]
fn combine<A: Address>(tuple: &Tuple<A>) -> u64 {
    let ports = (u64::from(tuple.src_port) << 16 | u64::from(tuple.dst_port)) << 8 | u64::from(tuple.protocol);
    tuple.src.fold().wrapping_mul(GOLDEN).rotate_left(32) ^ tuple.dst.fold().wrapping_mul(GOLDEN) ^ ports
}

/// The hash that picks a backend for a flow: the same for every packet of it.
#[inline(always)]
pub fn flow<A: Address>(tuple: &Tuple<A>, seed: u32) -> u32 {
    (mix(combine(tuple) ^ (u64::from(seed) << 40)) >> 32) as u32
}

/// The hash that picks a backend for a socket, which has no source port yet when it connects.
#[inline(always)]
pub fn socket<A: Address>(cookie: u64, frontend: &FrontendKey<A>, seed: u32) -> u32 {
    let port = u64::from(frontend.port) << 8 | u64::from(frontend.protocol);
    (mix(cookie.wrapping_mul(GOLDEN) ^ frontend.address.fold().rotate_left(24) ^ port ^ (u64::from(seed) << 40)) >> 32)
        as u32
}

/// A second hash of what has this one, as if independent of it: the finalizer of `MurmurHash3` (Appleby, 2011; public domain).
#[inline(always)]
pub const fn second(hash: u32) -> u32 {
    let mut x = hash;
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// Tells endpoints apart, the same on all nodes.
pub fn endpoint<A: Address>(address: A, port: u16) -> u64 {
    mix(address.fold().wrapping_mul(GOLDEN) ^ u64::from(port))
}

/// Names the flow that a value of `FLOWS*` was written for. Cheap rather than well mixed: it runs on every packet and
/// only has to differ between two flows that a race confuses.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "both halves take part")]
pub fn owner<A: Address>(tuple: &Tuple<A>) -> u32 {
    let x = combine(tuple);
    (x ^ (x >> 32)) as u32
}

/// Names the key that a value of `FRONTENDS*` was written for.
#[inline(always)]
pub fn frontend_owner<A: Address>(key: &FrontendKey<A>) -> u16 {
    let port = u64::from(key.port) << 8 | u64::from(key.protocol);
    ((key.address.fold() ^ port.rotate_left(40)).wrapping_mul(GOLDEN) >> 48) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(src: [u8; 4], src_port: u16) -> Tuple<[u8; 4]> {
        Tuple::new(src, src_port, [10, 96, 0, 1], 80, 6)
    }

    #[test]
    fn hashes_do_not_change_between_versions() {
        let v4 = tuple([192, 0, 2, 7], 40_000);
        let v6 = Tuple::new([0x20; 16], 40_000, [0xfd; 16], 443, 17);
        assert_eq!(
            [flow(&v4, 0), flow(&v4, 1), flow(&v6, 0), owner(&v4), owner(&v6)],
            [3_391_731_948, 3_832_869_877, 222_227_443, 2_779_852_775, 4_184_051_487],
            "a change of a hash moves every flow to another backend when nodes are upgraded"
        );
    }

    #[test]
    fn flows_spread_evenly_over_backends() {
        // 40,000 flows over 16 backends: 2,500 expected each, standard deviation sqrt(n p (1-p)) = 48.4.
        // Six deviations fail a good hash once in 10^7 runs; the input is fixed, so this cannot flake.
        let mut counts = [0_i64; 16];
        for client in 0..40_u8 {
            for port in 0..1000_u16 {
                let hash = flow(&tuple([10, 0, 0, client], 32_768 + port), 0);
                counts[((u64::from(hash) * 16) >> 32) as usize] += 1;
            }
        }
        for count in counts {
            assert!((count - 2500).abs() < 291, "{counts:?}");
        }
    }

    #[test]
    fn owners_of_neighbouring_flows_differ() {
        let mut seen = std::collections::HashSet::new();
        for client in 0..64_u8 {
            for port in 0..64_u16 {
                assert!(seen.insert(owner(&tuple([10, 0, 0, client], 1024 + port))), "client {client} port {port}");
            }
        }
        let key = tuple([10, 0, 0, 1], 1024);
        assert_ne!(owner(&key), owner(&key.reversed()));
    }
}
