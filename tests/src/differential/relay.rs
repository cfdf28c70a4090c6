//! Brings the one API server to nodes that have no way to each other: the nodes of all twins have the same addresses.
//!
//! A listener on each node's loopback address hands its connections, byte by byte, to the API server on the loopback
//! address of another host. So no interface or route is added that a proxy could take for one of the cluster's.

use std::net::{SocketAddr, TcpListener};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener as AsyncListener, TcpStream},
    runtime, task,
};

use crate::lab::Host;

/// Listens at `address` on each of `nodes`, for what listens at the same address on `server`. Goes on until the process
/// ends.
pub fn start<'a>(server: &Host, address: SocketAddr, nodes: impl IntoIterator<Item = &'a Host>) {
    let listeners: Vec<TcpListener> = nodes
        .into_iter()
        .map(|node| node.run(move || TcpListener::bind(address)).expect("nothing else listens on a node"))
        .collect();
    // Where the connections to the server are made decides from which host.
    drop(server.spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(task::LocalSet::new().run_until(async {
            for listener in listeners {
                listener.set_nonblocking(true).expect("a listener of our own");
                let listener = AsyncListener::from_std(listener).expect("a listener of our own");
                task::spawn_local(accept(listener, address));
            }
            std::future::pending::<()>().await;
        }));
    }));
}

async fn accept(listener: AsyncListener, address: SocketAddr) {
    loop {
        let Ok((mut near, _)) = listener.accept().await else { continue };
        task::spawn_local(async move {
            // Either end may go at any time; the other then sees its connection close.
            if let Ok(mut far) = TcpStream::connect(address).await {
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}
