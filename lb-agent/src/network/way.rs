//! The way to an address, as the kernel would take it now.

use std::{io, net::IpAddr};

use futures::TryStreamExt as _;
use nix::{ifaddrs::getifaddrs, net::if_::if_indextoname};
use rtnetlink::{
    Error, RouteMessageBuilder, new_connection,
    packet_route::route::{RouteAttribute, RouteMessage},
};

use super::NetworkError;

/// Index of the device that leads from this node to an address; `None` where no route does.
pub async fn device_towards(address: IpAddr) -> Result<Option<u32>, NetworkError> {
    let (connection, handle, _) = new_connection().map_err(NetworkError::Connect)?;
    tokio::spawn(connection);
    let request: RouteMessage = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(address, 128).build()
        }
    };
    let mut routes = std::pin::pin!(handle.route().get(request).execute());
    match routes.try_next().await {
        Ok(route) => Ok(route.and_then(|route| {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        })),
        // Unreachable.
        Err(Error::NetlinkError(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The link-layer address of a device; zeros for one that has none.
pub fn link_layer_address(index: u32) -> io::Result<[u8; 6]> {
    let name = if_indextoname(index)?;
    let addresses = getifaddrs()?.filter(|interface| interface.interface_name.as_bytes() == name.as_bytes());
    let addresses = addresses.filter_map(|interface| interface.address?.as_link_addr()?.addr());
    Ok(addresses.last().unwrap_or_default())
}
