//! Keeps the memory that the C library holds close to what the agent uses.
//!
//! What is needed for a moment is mostly needed at the start: lists of all objects as they arrive, and what adoption
//! reads out of the maps. glibc would keep much of it in reserve, in one heap for each thread that ever allocated.
//! Of an agent with 10,000 Services of 10 endpoints from an API server it was 10 of 44 MB.

/// Above this size, in bytes, a piece of memory is the kernel's again as soon as it is freed. glibc's own value, which
/// it raises by itself to up to 32 MiB when such pieces come and go (`M_MMAP_THRESHOLD` in mallopt(3)): a list that
/// grew would then stay.
#[cfg(target_env = "gnu")]
const LARGE: nix::libc::c_int = 128 * 1024;

/// To be called before there are threads.
pub(crate) fn hold_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two parameters of the allocator, while no other thread uses it.
    unsafe {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        // One heap: the agent's few threads seldom allocate at the same time.
        mallopt(M_ARENA_MAX, 1);
        mallopt(M_MMAP_THRESHOLD, LARGE);
        mallopt(M_TRIM_THRESHOLD, LARGE);
    }
}

/// Gives what is free back to the kernel, holes between what is in use as well. Takes some milliseconds.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches free memory only, under the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
