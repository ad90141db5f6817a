//! What stands between a device and its edge: it passes on so much, and then breaks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mooring::client::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Which bytes of a connection are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Towards {
    Edge,
    Device,
}

/// Takes one connection, passes on `bytes` in that direction, everything in the other, and then cuts both.
pub(crate) async fn tcp(to: &Endpoint, towards: Towards, bytes: usize) -> (Endpoint, JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let edge = to.address.to_string();
    let relay = tokio::spawn(async move {
        let (mut device, _) = listener.accept().await.expect("a device");
        let mut edge = TcpStream::connect(edge).await.expect("connected");
        let (from_device, to_device) = device.split();
        let (from_edge, to_edge) = edge.split();
        let passed = AtomicUsize::new(0);
        let (up, down) = match towards {
            Towards::Edge => (bytes, usize::MAX),
            Towards::Device => (usize::MAX, bytes),
        };
        // Whichever ends first cuts the other: both sockets go with this task.
        tokio::select! {
            () = pass(from_device, to_edge, up, (towards == Towards::Edge).then_some(&passed)) => {}
            () = pass(from_edge, to_device, down, (towards == Towards::Device).then_some(&passed)) => {}
        }
        passed.into_inner()
    });
    (Endpoint { address: address.into(), ..to.clone() }, relay)
}

async fn pass(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    bytes: usize,
    passed: Option<&AtomicUsize>,
) {
    let mut left = bytes;
    let mut buffer = [0; 4_096];
    while left > 0 {
        let room = buffer.len().min(left);
        // An end is an end, whoever made it.
        let Ok(count @ 1..) = from.read(&mut buffer[..room]).await else { return };
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        left -= count;
        if let Some(passed) = passed {
            passed.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Passes on datagrams of one device, both ways, up to a number that may be lowered; what comes then is lost.
pub(crate) struct Udp {
    pub(crate) endpoint: Endpoint,
    most: Arc<AtomicUsize>,
    lost: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Drop for Udp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Udp {
    /// Passes on so many.
    pub(crate) async fn new(to: &Endpoint, datagrams: usize) -> Self {
        let device_side = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let edge_side = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        edge_side.connect(&*to.address).await.expect("connected");
        let address = device_side.local_addr().expect("an address").to_string();
        let most = Arc::new(AtomicUsize::new(datagrams));
        let (tell, lost) = watch::channel(false);
        let task = tokio::spawn(relay(device_side, edge_side, most.clone(), tell));
        Self { endpoint: Endpoint { address: address.into(), ..to.clone() }, most, lost, task }
    }

    /// From now on everything is lost.
    pub(crate) fn cut(&self) {
        self.most.store(0, Ordering::Relaxed);
    }

    /// Waits until something was lost.
    pub(crate) async fn has_lost(&self) {
        self.lost.clone().wait_for(|lost| *lost).await.expect("it runs");
    }
}

async fn relay(
    device_side: UdpSocket,
    edge_side: UdpSocket,
    most: Arc<AtomicUsize>,
    tell: watch::Sender<bool>,
) {
    let mut device: Option<SocketAddr> = None;
    let (mut up, mut down) = ([0; 2_048], [0; 2_048]);
    let mut passed = 0;
    loop {
        // Who has left makes sockets fail: then there is nothing to pass on.
        let (bytes, towards) = tokio::select! {
            Ok((count, from)) = device_side.recv_from(&mut up) => {
                device = Some(from);
                (&up[..count], Towards::Edge)
            }
            Ok(count) = edge_side.recv(&mut down) => (&down[..count], Towards::Device),
            else => continue,
        };
        if passed >= most.load(Ordering::Relaxed) {
            tell.send_replace(true);
            continue;
        }
        passed += 1;
        match (towards, device) {
            (Towards::Edge, _) => drop(edge_side.send(bytes).await),
            (Towards::Device, Some(device)) => drop(device_side.send_to(bytes, device).await),
            (Towards::Device, None) => {}
        }
    }
}
