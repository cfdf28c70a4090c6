//! The few things that aya has no call for: batched map operations, what a pinned link is attached to, detaching it at
//! once, and the cookie of the network namespace. Layouts are those of `include/uapi/linux/bpf.h`.

use std::{
    convert::Infallible,
    ffi::CString,
    fs, io, mem,
    ops::ControlFlow,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use aya::Pod;
use nix::libc;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_TRACE_ITER`, of `enum bpf_attach_type`.
const TRACE_ITER: u32 = 28;

/// `BPF_F_QUERY_EFFECTIVE`: what runs, those of the cgroups above included.
const QUERY_EFFECTIVE: u32 = 1;

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_TYPE_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_XDP`.
const LINK_TYPE_XDP: u32 = 6;
/// `BPF_LINK_TYPE_TCX`.
const LINK_TYPE_TCX: u32 = 11;

/// Elements that one batched lookup asks for. Larger than any bucket of a hash map is likely to grow: the kernel
/// returns whole buckets.
const BATCH: usize = 4096;
/// Bytes of values that [`walk`] reads at once, about.
const WALK_BYTES: usize = 1 << 20;

fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: each attribute type below is the prefix of `union bpf_attr` that its command reads and writes, and
    // outlives the call; pointers inside it are the callers' to keep.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attribute), mem::size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What a file on a bpffs holds.
#[derive(Debug)]
pub(crate) enum Pinned {
    Link(LinkInfo),
    Map,
    Program,
    Other(String),
}

impl std::fmt::Display for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Map => f.write_str("a map"),
            Self::Program => f.write_str("a program"),
            Self::Other(kind) => write!(f, "a {kind}"),
            Self::Link(LinkInfo { attach_type, target, .. }) => match target {
                LinkTarget::Cgroup(id) => write!(f, "a link of attach type {attach_type} to cgroup {id}"),
                LinkTarget::Tcx(index) => write!(f, "a tcx link of attach type {attach_type} to device {index}"),
                LinkTarget::Xdp(index) => write!(f, "an XDP link to device {index}"),
                LinkTarget::Other(kind) => write!(f, "a link of type {kind}"),
            },
        }
    }
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// Id of the attached program.
    pub program: u32,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
    pub target: LinkTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// Inode number of the directory; 0 once the cgroup is gone.
    Cgroup(u64),
    /// Interface index; 0 once the device is gone.
    Tcx(u32),
    /// Likewise.
    Xdp(u32),
    /// `enum bpf_link_type` of a link that we do not make.
    Other(u32),
}

#[repr(C)]
struct ObjectGet {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    len: u32,
    info: u64,
}

/// `struct bpf_link_info`: its union begins at offset 16.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    union: [u32; 16],
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    input: u64,
    output: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// `link_create` of `union bpf_attr`, as iterators use it.
#[repr(C)]
#[derive(Default)]
struct IteratorLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    information: u64,
    length: u32,
    pad: u32,
}

/// `iter_create`.
#[repr(C)]
struct IteratorCreate {
    link: u32,
    flags: u32,
}

/// `query` of `union bpf_attr`, whole: the kernel writes to fields at its end, whatever size is said.
#[repr(C)]
#[derive(Default)]
struct ProgramQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Where programs may be attached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum QueryTarget<'a> {
    /// A device, by its index.
    Tcx(u32),
    /// A directory of cgroup2.
    Cgroup(BorrowedFd<'a>),
}

/// Ids of the programs that run at a hook, in their order, whoever attached them.
pub(crate) fn attached_programs(target: QueryTarget<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    /// More than there may be (`BPF_MPROG_MAX`, `BPF_CGROUP_MAX_PROGS`).
    const MOST: usize = 64;
    let mut programs = vec![0_u32; MOST];
    let (target, query_flags) = match target {
        QueryTarget::Tcx(index) => (index, 0),
        QueryTarget::Cgroup(directory) => (descriptor(directory.as_raw_fd()), QUERY_EFFECTIVE),
    };
    let mut query = ProgramQuery {
        target,
        attach_type,
        query_flags,
        programs: programs.as_mut_ptr() as u64,
        count: u32::try_from(MOST).map_err(io::Error::other)?,
        ..ProgramQuery::default()
    };
    match bpf(BPF_PROG_QUERY, &mut query) {
        // Nothing was ever attached there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        result => result?,
    };
    programs.truncate(query.count as usize);
    Ok(programs)
}

/// Looks at what is pinned at `path`.
pub(crate) fn inspect(path: &Path) -> io::Result<Pinned> {
    let fd = open(path)?;
    // All bpf objects share one system call for their information, which does not say what it describes.
    let kind = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(match kind.to_string_lossy().trim_start_matches("anon_inode:").trim_matches(['[', ']']) {
        "bpf-map" => Pinned::Map,
        "bpf-prog" => Pinned::Program,
        "bpf_link" | "bpf-link" => Pinned::Link(link_info(&fd)?),
        other => Pinned::Other(other.to_owned()),
    })
}

/// Detaches the link that is pinned at `path`. A link that nobody holds any more is detached only some time later, and
/// keeps others off its place until then.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    let link = open(path)?;
    let mut detach = descriptor(link.as_raw_fd());
    bpf(BPF_LINK_DETACH, &mut detach).map(drop)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut get = ObjectGet { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    made(bpf(BPF_OBJ_GET, &mut get)?)
}

fn link_info(fd: &OwnedFd) -> io::Result<LinkInfo> {
    let mut raw = RawLinkInfo::default();
    let mut query = InfoByFd { fd: descriptor(fd.as_raw_fd()), len: size(&raw), info: ptr::from_mut(&mut raw) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut query)?;
    let [first, second, third, ..] = raw.union;
    let (target, attach_type) = match raw.kind {
        LINK_TYPE_CGROUP => (LinkTarget::Cgroup(u64::from(second) << 32 | u64::from(first)), third),
        LINK_TYPE_TCX => (LinkTarget::Tcx(first), second),
        LINK_TYPE_XDP => (LinkTarget::Xdp(first), 0),
        other => (LinkTarget::Other(other), 0),
    };
    Ok(LinkInfo { program: raw.program, attach_type, target })
}

/// Reads a whole hash map, or the first `limit` elements of an array, in the map's order; returns those to `keep`.
pub(crate) fn read_all<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    limit: usize,
    keep: impl Fn(&V) -> bool,
) -> io::Result<Vec<(K, V)>> {
    let mut elements = Vec::new();
    let ControlFlow::Continue(()) = visit(map, limit, |keys: &[K], values: &[V]| {
        let batch = keys.iter().zip(values).filter(|(_, value)| keep(value));
        elements.extend(batch.map(|(key, value)| (*key, *value)));
        ControlFlow::<Infallible>::Continue(())
    })?;
    Ok(elements)
}

/// Shows a whole hash map, or the first `limit` elements of an array, batch by batch in the map's order, until `see` has
/// seen enough. Nothing but a batch is held.
pub(crate) fn visit<K: Pod, V: Pod, B>(
    map: BorrowedFd<'_>,
    limit: usize,
    mut see: impl FnMut(&[K], &[V]) -> ControlFlow<B>,
) -> io::Result<ControlFlow<B>> {
    let mut position: Option<u32> = None;
    let mut read = 0;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    while read < limit {
        let next = read_some(map, position, BATCH.min(limit - read), &mut keys, &mut values)?;
        read += keys.len();
        if let ControlFlow::Break(result) = see(&keys, &values) {
            return Ok(ControlFlow::Break(result));
        }
        position = next;
        if position.is_none() {
            break;
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Reads the elements of a hash map or an array after `position`, the first ones where there is none: `about` that many, and
/// more where a bucket of a hash map holds more. They replace what `keys` and `values` hold. Returns the position after
/// them, `None` at the end.
///
/// A position is an `u32` for hash maps, and the key of the last element for all others: for arrays an `u32` as well. Of a
/// trie whose last element was removed meanwhile, the kernel begins anew, or leaves elements out.
pub(crate) fn read_some<P: Pod, K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    position: Option<P>,
    about: usize,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<Option<P>> {
    // SAFETY: every bit pattern of a `Pod` is a value.
    let mut next: P = unsafe { mem::zeroed() };
    let mut batch = about;
    loop {
        keys.clear();
        values.clear();
        keys.reserve(batch);
        values.reserve(batch);
        let mut query = Batch {
            input: position.as_ref().map_or(0, |position| ptr::from_ref(position) as u64),
            output: ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(batch).map_err(io::Error::other)?,
            map_fd: descriptor(map.as_raw_fd()),
            ..Batch::default()
        };
        let last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut query) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < 1 << 20 => {
                batch *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = query.count as usize;
        // SAFETY: the kernel has written `count` elements of the map's key and value size, which aya has compared
        // with those of `K` and `V`, and every bit pattern of a `Pod` is a value. `count` is at most the capacity.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        return Ok((!last).then_some(next));
    }
}

/// Shows all values of a hash map, or the first `limit` of an array, in the map's order and many at once. Keys and values
/// are of these sizes in bytes; that of a per-CPU map's value is the sum over all CPUs that may ever be there.
pub(crate) fn walk(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    limit: usize,
    mut see: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut position: Option<u32> = None;
    let mut walked = 0;
    // No more than a few megabytes at once, whatever the number of CPUs.
    let mut batch = BATCH.min((WALK_BYTES / value_size.max(1)).max(64));
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    while walked < limit {
        keys.resize(batch * key_size.next_multiple_of(8), 0_u8);
        values.resize(batch * value_size.next_multiple_of(8), 0_u8);
        let mut next = 0_u32;
        let mut query = Batch {
            input: position.as_ref().map_or(0, |position| ptr::from_ref(position) as u64),
            output: ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(batch.min(limit - walked)).map_err(io::Error::other)?,
            map_fd: descriptor(map.as_raw_fd()),
            ..Batch::default()
        };
        let last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut query) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < 1 << 20 => {
                batch *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = query.count as usize;
        walked += count;
        see(values.get(..count * value_size).unwrap_or_default());
        if last {
            break;
        }
        position = Some(next);
    }
    Ok(())
}

/// Writes elements, in order; on an error some of them.
pub(crate) fn write_all<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    if keys.len() != values.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if keys.is_empty() {
        return Ok(());
    }
    let mut request = Batch {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: descriptor(map.as_raw_fd()),
        ..Batch::default()
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut request).map(drop)
}

/// Links an iterator program to the map that it is to walk over (`map.map_fd` of `union bpf_iter_link_info`).
pub(crate) fn walk_over(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map = descriptor(map.as_raw_fd());
    let mut link = IteratorLink {
        program: descriptor(program.as_raw_fd()),
        attach_type: TRACE_ITER,
        information: ptr::from_ref(&map) as u64,
        length: size(&map),
        ..IteratorLink::default()
    };
    made(bpf(BPF_LINK_CREATE, &mut link)?)
}

/// Begins a walk: what the program writes is what is read.
pub(crate) fn begin_walk(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut create = IteratorCreate { link: descriptor(link.as_raw_fd()), flags: 0 };
    made(bpf(BPF_ITER_CREATE, &mut create)?)
}

/// A descriptor that the kernel has just returned.
fn made(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The cookie of the network namespace that this thread is in, as `bpf_get_netns_cookie` of its sockets shows it.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut cookie = 0_u64;
    let mut len = size(&cookie);
    // SAFETY: the option is an u64, and `len` says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

fn size<T>(_: &T) -> u32 {
    u32::try_from(mem::size_of::<T>()).unwrap_or(u32::MAX)
}

fn descriptor(fd: libc::c_int) -> u32 {
    fd.cast_unsigned()
}
