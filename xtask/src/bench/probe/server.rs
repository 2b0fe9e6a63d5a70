//! What is probed: ports of the node that accept and close, one that accepts and is silent, and one that answers HTTP.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::space::Space;

/// Ports that accept and close.
const PORTS: usize = 4;
/// An accept queue for a thousand connections at one time.
const BACKLOG: i32 = 4_096;

/// Their threads end with the process.
pub(super) struct Servers {
    pub(super) tcp: Vec<u16>,
    pub(super) silent: u16,
    pub(super) http: u16,
}

impl Servers {
    pub(super) fn start(space: &Space) -> Result<Self> {
        let mut tcp = Vec::new();
        for _ in 0..PORTS {
            tcp.push(serve(space, drop)?);
        }
        let mut held = Vec::new();
        let silent = serve(space, move |stream| held.push(stream))?;
        let http = serve(space, answer)?;
        Ok(Self { tcp, silent, http })
    }
}

fn serve(space: &Space, mut each: impl FnMut(TcpStream) + Send + 'static) -> Result<u16> {
    let listener = space.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot listen"))?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(BACKLOG)?)
        .context("cannot widen the backlog")?;
    let port = listener.local_addr().context("a listener has no address")?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            each(stream);
        }
    });
    Ok(port)
}

/// One request, one answer.
fn answer(mut stream: TcpStream) {
    let mut request = [0; 1024];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    if stream.read(&mut request).is_ok_and(|read| read > 0) {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }
}
