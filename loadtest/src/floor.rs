//! The floor: what the same traffic costs a server that does nothing else. One thread, one epoll, blocking on nothing: write one frame
//! to one of many sockets, learn that its acknowledgement is readable, read it.
//!
//! It is a process of its own, so that its CPU can be told from the devices'; those are bare tasks of this process.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use mooring::cli::output::{Failure, line, note};
use mooring::client::Way;
use mooring::client::local::enough_descriptors;
use mooring::clock::Clock;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::fleet::source;
use crate::numbers::median;
use crate::process::Process;

/// Bytes around the payload of a push: length, id, kind, expiry.
const PUSH_OVERHEAD: usize = 32;
/// Bytes of an acknowledgement of one message.
const ACK_BYTES: usize = 24;
/// Messages in flight if there is no rate.
const IN_FLIGHT: u64 = 256;
/// Seconds without an acknowledgement after which the server gives up.
const STALLED_SECONDS: u64 = 10;
/// Connections that are opened before the next is waited for.
const BACKLOG: u32 = 1_024;

/// The same load as that of the measurement: single messages for so many seconds, or rounds of messages to everybody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) devices: u32,
    pub(crate) rate: u64,
    pub(crate) seconds: u64,
    /// 0: single messages.
    pub(crate) rounds: u32,
    /// To each device in a round.
    pub(crate) messages: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) seed: u64,
}

/// Flags of the server.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    devices: u32,
    #[arg(long)]
    rate: u64,
    #[arg(long)]
    seconds: u64,
    #[arg(long)]
    rounds: u32,
    #[arg(long)]
    messages: u32,
    #[arg(long)]
    payload_bytes: u32,
    #[arg(long)]
    seed: u64,
}

/// What it costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Of the server, a delivery.
    pub(crate) cpu_us: f64,
    /// Of a round, to its last acknowledgement: the median. 0 of single messages.
    pub(crate) round_ms: f64,
}

/// The floor around a measurement: the same load over bare sockets right before and right after it.
pub(crate) struct Around {
    run: Run,
    before: Option<Cost>,
}

impl Around {
    /// Runs it for the first time, if it is wanted.
    pub(crate) async fn before(wanted: bool, way: Way, run: Run) -> Result<Self, Failure> {
        if wanted && way != Way::Tcp {
            note("the floor is plain TCP");
        }
        let before = if wanted { Some(measure(run).await?) } else { None };
        Ok(Self { run, before })
    }

    /// Runs it again: the mean of both.
    pub(crate) async fn after(self) -> Result<Option<Cost>, Failure> {
        let Some(before) = self.before else { return Ok(None) };
        let after = measure(self.run).await?;
        Ok(Some(Cost {
            cpu_us: f64::midpoint(before.cpu_us, after.cpu_us),
            round_ms: f64::midpoint(before.round_ms, after.round_ms),
        }))
    }
}

/// Runs it once.
async fn measure(run: Run) -> Result<Cost, Failure> {
    let program = std::env::current_exe().map_err(Failure::failed)?;
    let flag = |name: &str, value: u64| [format!("--{name}"), value.to_string()];
    let mut server = tokio::process::Command::new(program)
        .arg("floor-server")
        .args(flag("devices", run.devices.into()))
        .args(flag("rate", run.rate))
        .args(flag("seconds", run.seconds))
        .args(flag("rounds", run.rounds.into()))
        .args(flag("messages", run.messages.into()))
        .args(flag("payload-bytes", run.payload_bytes.into()))
        .args(flag("seed", run.seed))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::failed)?;
    let output = server.stdout.take().ok_or_else(|| Failure::failed("the floor has no output"))?;
    let mut lines = tokio::io::BufReader::new(output).lines();
    let mut next = async || -> Result<String, Failure> {
        let line = lines.next_line().await.map_err(Failure::failed)?;
        line.ok_or_else(|| Failure::failed("the floor's server ended"))
    };
    let address: SocketAddr = next().await?.parse().map_err(Failure::failed)?;
    let devices = connect(run, address).await?;
    let figures = next().await?;
    let mut numbers = figures.split(' ').map(str::parse::<f64>);
    let numbers = [numbers.next(), numbers.next(), numbers.next()];
    let [Some(Ok(deliveries)), Some(Ok(cpu_us)), Some(Ok(round_us))] = numbers else {
        return Err(Failure::failed(format!("the floor said '{figures}'")));
    };
    drop(devices);
    server.wait().await.map_err(Failure::failed)?;
    Ok(Cost { cpu_us: cpu_us / deliveries.max(1.0), round_ms: round_us / 1_000.0 })
}

/// The devices: each reads what comes at once and acknowledges it.
async fn connect(run: Run, address: SocketAddr) -> Result<JoinSet<()>, Failure> {
    let mut devices = JoinSet::new();
    let push_bytes = push_bytes(run.payload_bytes) * run.messages as usize;
    for n in 0..run.devices {
        let socket = tokio::net::TcpSocket::new_v4().map_err(Failure::failed)?;
        socket.bind(SocketAddr::new(source(n), 0)).map_err(Failure::failed)?;
        let mut stream = socket.connect(address).await.map_err(Failure::failed)?;
        stream.set_nodelay(true).map_err(Failure::failed)?;
        devices.spawn(async move {
            let mut push = vec![0; push_bytes];
            // The server closes in the end.
            while stream.read_exact(&mut push).await.is_ok()
                && stream.write_all(&[0; ACK_BYTES]).await.is_ok()
            {}
        });
        if n % BACKLOG == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(devices)
}

fn push_bytes(payload_bytes: u32) -> usize {
    payload_bytes as usize + PUSH_OVERHEAD
}

/// The server: prints its address, waits for its devices, sends, and prints deliveries and CPU microseconds.
pub(crate) fn serve(args: &Args) -> Result<(), Failure> {
    enough_descriptors(u64::from(args.devices) + 64).map_err(Failure::usage)?;
    let run = |server: Server| if args.rounds == 0 { server.singly(args) } else { server.rounds(args) };
    let Counted { deliveries, cpu_us, round_us } =
        Server::new(args).and_then(run).map_err(Failure::failed)?;
    line(&format!("{deliveries} {cpu_us} {round_us}"));
    Ok(())
}

/// What a server counted.
struct Counted {
    deliveries: u64,
    cpu_us: u64,
    /// The median of the rounds.
    round_us: u64,
}

struct Server {
    poll: Poll,
    events: Events,
    devices: Vec<TcpStream>,
    /// Acknowledgement bytes read.
    read: u64,
    sent: u64,
}

/// What this process has used.
fn cpu_us() -> io::Result<u64> {
    let process = Process::new(std::process::id()).map_err(io::Error::other)?;
    process.cpu_us().map_err(io::Error::other)
}

impl Server {
    fn new(args: &Args) -> io::Result<Self> {
        let poll = Poll::new()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        line(&listener.local_addr()?.to_string());
        let mut devices = Vec::new();
        for n in 0..args.devices as usize {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(n), Interest::READABLE)?;
            devices.push(stream);
        }
        Ok(Self { poll, events: Events::with_capacity(1_024), devices, read: 0, sent: 0 })
    }

    fn acked(&self) -> u64 {
        self.read / ACK_BYTES as u64
    }

    /// Everybody gets as many messages as a round has, in one write; the next round begins when all are acknowledged.
    fn rounds(mut self, args: &Args) -> io::Result<Counted> {
        let clock = Clock::new(0);
        let push = vec![b'x'; push_bytes(args.payload_bytes) * args.messages as usize];
        let before = cpu_us()?;
        let mut times = Vec::new();
        for _ in 0..args.rounds {
            let start = clock.micros();
            for device in 0..self.devices.len() {
                self.send(device, &push)?;
            }
            self.all_acked(&clock)?;
            times.push(clock.micros() - start);
        }
        let deliveries = self.acked() * u64::from(args.messages);
        Ok(Counted { deliveries, cpu_us: cpu_us()? - before, round_us: median(&mut times) })
    }

    /// One message after the other, each to a device by chance.
    fn singly(mut self, args: &Args) -> io::Result<Counted> {
        let clock = Clock::new(0);
        let mut rng = SmallRng::seed_from_u64(args.seed);
        let push = vec![b'x'; push_bytes(args.payload_bytes)];
        let (before, start) = (cpu_us()?, clock.micros());
        let end = start + args.seconds * 1_000_000;
        loop {
            let now = clock.micros();
            if now >= end {
                break;
            }
            let due = match args.rate {
                0 => self.acked() + IN_FLIGHT,
                rate => (now - start) * rate / 1_000_000,
            };
            while self.sent < due {
                let device = rng.random_range(0..self.devices.len());
                self.send(device, &push)?;
            }
            let wait = 1_000_000u64.checked_div(args.rate).map_or(end - now, |interval| interval.max(1));
            self.acks(Duration::from_micros(wait))?;
        }
        self.all_acked(&clock)?;
        Ok(Counted { deliveries: self.acked(), cpu_us: cpu_us()? - before, round_us: 0 })
    }

    fn all_acked(&mut self, clock: &Clock) -> io::Result<()> {
        let mut last = (self.acked(), clock.micros());
        while self.acked() < self.sent {
            self.acks(Duration::from_millis(10))?;
            if self.acked() > last.0 {
                last = (self.acked(), clock.micros());
            } else if clock.micros() - last.1 > STALLED_SECONDS * 1_000_000 {
                return Err(io::Error::other("acknowledgements are missing"));
            }
        }
        Ok(())
    }

    fn send(&mut self, device: usize, push: &[u8]) -> io::Result<()> {
        self.sent += 1;
        match self.devices[device].write(push) {
            Ok(n) if n == push.len() => Ok(()),
            // A socket's buffer holds many of these: a device that doesn't read is a fault of the measurement.
            Ok(_) => Err(io::Error::other("a short write")),
            Err(error) => Err(error),
        }
    }

    fn acks(&mut self, wait: Duration) -> io::Result<()> {
        self.poll.poll(&mut self.events, Some(wait))?;
        let mut buffer = [0; 4_096];
        for event in &self.events {
            // A short read has taken all there was; the next bytes are a new event.
            loop {
                match self.devices[event.token().0].read(&mut buffer) {
                    Ok(0) => return Err(io::Error::other("a device left")),
                    Ok(n) => {
                        self.read += n as u64;
                        if n < buffer.len() {
                            break;
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}
