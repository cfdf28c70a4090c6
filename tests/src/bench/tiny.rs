//! Programs of a few instructions: classifiers to compare ours with, of which one does nothing and one looks one key up,
//! and an XDP program that passes everything on. Written out in instructions, since they belong to no object that users load.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::libc;

/// Commands, types and sizes of `include/uapi/linux/bpf.h`.
const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
const BPF_LINK_CREATE: i64 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// `BPF_XDP` of `enum bpf_attach_type`, and `XDP_FLAGS_DRV_MODE` of `include/uapi/linux/if_link.h`.
const ATTACH_XDP: u32 = 37;
const IN_DRIVER: u32 = 1 << 2;
const XDP_PASS: i32 = 2;

/// Elements of the map that is looked into: as many as established flows are measured with, both directions.
pub const ELEMENTS: u32 = 2 * super::program_time::FLOWS;
const MASK: i32 = (ELEMENTS - 1).cast_signed();
const _: () = assert!(ELEMENTS.is_power_of_two());
/// Key and value as large as those of `FLOWS4`.
const KEY: usize = 16;
const VALUE: usize = 48;

fn bpf<T>(command: i64, attribute: &mut T) -> io::Result<i64> {
    let size = libc::c_long::try_from(size_of::<T>()).expect("small");
    // SAFETY: `attribute` is a prefix of `union bpf_attr` for the command, valid for its size; pointers in it are to
    // memory that lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(number: i64) -> OwnedFd {
    // SAFETY: the kernel just made it for us.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(number).expect("a file descriptor")) }
}

/// One instruction: opcode, registers (source in the upper half), offset, immediate.
const fn instruction(opcode: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    opcode as u64
        | (registers as u64) << 8
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

/// Attributes of `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Update {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// A loaded classifier, and the map that it needs.
#[derive(Debug)]
pub struct Tiny {
    program: OwnedFd,
    #[expect(dead_code, reason = "held while the program runs")]
    map: Option<OwnedFd>,
}

impl Tiny {
    /// `return TC_ACT_UNSPEC`.
    pub fn empty() -> io::Result<Self> {
        Ok(Self { program: load(BPF_PROG_TYPE_SCHED_CLS, &returns(-1))?, map: None })
    }

    /// Looks one key up in an LRU hash of [`ELEMENTS`], another one each time: it counts in the packet, where the IP
    /// header would be, since a test run repeats on the packet that the last run left.
    pub fn lookup() -> io::Result<Self> {
        let mut create = [
            BPF_MAP_TYPE_LRU_HASH,
            u32::try_from(KEY).expect("small"),
            u32::try_from(VALUE).expect("small"),
            2 * ELEMENTS,
        ];
        let map = descriptor(bpf(BPF_MAP_CREATE, &mut create)?);
        let mut value = [0_u8; VALUE];
        for number in 0..ELEMENTS {
            let mut key = [0_u8; KEY];
            key[..4].copy_from_slice(&number.to_ne_bytes());
            let mut update = Update {
                map: u64::from(map.as_raw_fd().cast_unsigned()),
                key: key.as_mut_ptr().expose_provenance() as u64,
                value: value.as_mut_ptr().expose_provenance() as u64,
                flags: 0,
            };
            bpf(BPF_MAP_UPDATE_ELEM, &mut update)?;
        }
        let program = load(
            BPF_PROG_TYPE_SCHED_CLS,
            &[
                // r2 = skb->data; r3 = skb->data_end; if r2 + 18 > r3 goto not found
                instruction(0x61, 0x12, 76, 0),
                instruction(0x61, 0x13, 80, 0),
                instruction(0xbf, 0x24, 0, 0),
                instruction(0x07, 4, 0, 18),
                instruction(0x2d, 0x34, 15, 0),
                // r1 = ++*(u32 *)(r2 + 14); r1 &= ELEMENTS - 1
                instruction(0x61, 0x21, 14, 0),
                instruction(0x07, 1, 0, 1),
                instruction(0x63, 0x12, 14, 0),
                instruction(0x57, 1, 0, MASK),
                // *(u64 *)(r10 - 16) = r1; *(u64 *)(r10 - 8) = 0
                instruction(0x7b, 0x1a, -16, 0),
                instruction(0xb7, 1, 0, 0),
                instruction(0x7b, 0x1a, -8, 0),
                // r2 = r10 - 16
                instruction(0xbf, 0xa2, 0, 0),
                instruction(0x07, 2, 0, -16),
                // r1 = map (BPF_PSEUDO_MAP_FD)
                instruction(0x18, 0x11, 0, map.as_raw_fd()),
                0,
                // call bpf_map_lookup_elem
                instruction(0x85, 0, 0, 1),
                // if r0 == 0 goto not found (verdict 2, which the caller notices)
                instruction(0x15, 0, 2, 0),
                // r0 = -1; exit
                instruction(0xb7, 0, 0, -1),
                instruction(0x95, 0, 0, 0),
                instruction(0xb7, 0, 0, 2),
                instruction(0x95, 0, 0, 0),
            ],
        )?;
        Ok(Self { program, map: Some(map) })
    }

    /// Runs it `repeat` times on a packet. Nanoseconds of one run, with the loop around it.
    pub fn run(&self, packet: &[u8], repeat: u32) -> io::Result<u32> {
        #[repr(C)]
        #[derive(Default)]
        struct TestRun {
            program: u32,
            verdict: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
        }
        let mut run = TestRun {
            program: self.program.as_raw_fd().cast_unsigned(),
            size_in: u32::try_from(packet.len()).expect("small"),
            data_in: packet.as_ptr().expose_provenance() as u64,
            repeat,
            ..TestRun::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut run)?;
        assert_eq!(run.verdict.cast_signed(), -1, "the reference program did not find its key");
        Ok(run.duration)
    }
}

/// `r0 = verdict; exit`.
const fn returns(verdict: i32) -> [u64; 2] {
    [instruction(0xb7, 0, 0, verdict), instruction(0x95, 0, 0, 0)]
}

/// Passes everything on at XDP in the driver of a device of this thread's network namespace, until what is returned is
/// dropped. On a veth, the far end can then send what its own XDP returns or redirects.
pub fn pass_at_xdp(interface: u32) -> io::Result<OwnedFd> {
    let program = load(BPF_PROG_TYPE_XDP, &returns(XDP_PASS))?;
    // `link_create` of `union bpf_attr`: prog_fd, target_ifindex, attach_type, flags.
    let mut create = [program.as_raw_fd().cast_unsigned(), interface, ATTACH_XDP, IN_DRIVER];
    bpf(BPF_LINK_CREATE, &mut create).map(descriptor)
}

fn load(kind: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
    }
    let mut load = Load {
        kind,
        instruction_count: u32::try_from(instructions.len()).expect("a few"),
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    bpf(BPF_PROG_LOAD, &mut load).map(descriptor)
}
