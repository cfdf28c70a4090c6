/// Key of `LOADS*`: a backend while it is the endpoint that it is. An index that is given to another endpoint has another
/// generation, and so begins without flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LoadKey {
    /// Index in `BACKENDS*`.
    pub backend: u32,
    /// Its generation.
    pub generation: u32,
}

/// Value of `LOADS*`: how many flows a backend has, of a service with [`ServiceFlags::LEAST_CONN`].
///
/// The programs add what they begin, on all CPUs; nobody takes off what ends. The agent counts anew what lives, again and
/// again, and writes that over it. No element: no flow.
///
/// [`ServiceFlags::LEAST_CONN`]: super::ServiceFlags::LEAST_CONN
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Load {
    /// Flows that lived when the agent counted, and those begun since.
    pub flows: u64,
}
