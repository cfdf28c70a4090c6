//! Where our programs are attached by clsact: such filters have no pins to tell.

use std::io;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcOption};

use super::{
    Direction, LoaderError,
    attach::{FILTER_HANDLE, interfaces},
};

/// Our filters: direction, interface index, and id of the program.
pub async fn clsact_filters() -> Result<Vec<(Direction, u32, u32)>, LoaderError> {
    let filters = bpf_filters().await?.into_iter();
    let ours = filters.filter(|filter| filter.is_ours);
    Ok(ours.map(|Filter { direction, device, program, .. }| (direction, device, program)).collect())
}

/// A filter of type bpf at a clsact or ingress qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) direction: Direction,
    /// Interface index.
    pub(crate) device: u32,
    /// Id of the program.
    pub(crate) program: u32,
    pub(crate) is_ours: bool,
}

/// The filters of all devices.
pub(crate) async fn bpf_filters() -> Result<Vec<Filter>, LoaderError> {
    let failed = |source| LoaderError::Kernel { path: "rtnetlink: list of filters".to_owned(), source };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
    tokio::spawn(connection);
    let mut found = Vec::new();
    for device in interfaces()? {
        for direction in Direction::ALL {
            let filters = handle.traffic_filter(device.cast_signed()).get();
            let filters = match direction {
                Direction::Ingress => filters.ingress(),
                Direction::Egress => filters.egress(),
            };
            let mut filters = std::pin::pin!(filters.execute());
            while let Some(filter) = filters.try_next().await.map_err(|error| failed(io::Error::other(error)))? {
                let handle = filter.header.handle;
                let is_ours = FILTER_HANDLE == aya::programs::tc::TcHandle::new(handle.major, handle.minor);
                let program = program(&filter.attributes);
                found.extend(program.map(|program| Filter { direction, device, program, is_ours }));
            }
        }
    }
    Ok(found)
}

fn program(attributes: &[TcAttribute]) -> Option<u32> {
    let options = attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}
