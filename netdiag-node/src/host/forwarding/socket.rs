//! The sockets of the calling thread's network namespace that take a packet, for rules that ask for them.

use netdiag_common::forwarding::Fact;
use netdiag_common::forwarding::socket::{FoundSocket, SocketQuery, SocketState};
use netdiag_common::observation::Protocol;

use crate::host::listener::{self, Delivered, Taker};

/// Unknown where the kernel could not be asked: a rule that asks is then followed both ways, with this as the reason.
pub(super) fn found(query: &SocketQuery) -> Fact<Vec<FoundSocket>> {
    let Some(protocol) = Protocol::from_number(query.protocol) else {
        return Fact::Unknown(format!("sockets of protocol {} are not looked up", query.protocol));
    };
    let packet = Delivered { protocol, source: query.source, destination: query.destination, input: query.interface };
    match listener::takers(&packet) {
        Ok(takers) => Fact::Known(takers.into_iter().map(socket).collect()),
        Err(error) => Fact::Unknown(format!("this host's sockets could not be read: {error}")),
    }
}

fn socket(taker: Taker) -> FoundSocket {
    let state = match taker.state {
        _ if taker.is_time_wait => SocketState::Closed,
        // `TCP_SYN_RECV`
        3 => SocketState::Opening,
        _ => SocketState::Whole,
    };
    let hidden = |what: &str| match state {
        SocketState::Whole => format!("the kernel does not show {what} of the socket on {}", taker.address),
        SocketState::Opening | SocketState::Closed => {
            format!("the kernel does not show {what} of a connection that opens or closes")
        }
    };
    let transparent = taker.transparent.map_or_else(|| Fact::Unknown(hidden("the options")), Fact::Known);
    let mark = taker.mark.map_or_else(|| Fact::Unknown(hidden("the mark")), Fact::Known);
    FoundSocket { address: taker.address, remote: taker.remote, state, transparent, mark }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    /// Longer than an acknowledgement is put off.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_socket_of_this_test_is_found_with_its_options() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let source: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let query = SocketQuery { protocol: 6, source, destination: address, interface: 1 };
        let Fact::Known(sockets) = found(&query) else { panic!("{:?}", found(&query)) };
        let [socket] = &sockets[..] else { panic!("{sockets:?}") };
        assert_eq!((socket.address, socket.remote, socket.state), (address, None, SocketState::Whole));
        // Shown since Linux 5.10.
        assert!(matches!(socket.transparent, Fact::Known(false) | Fact::Unknown(_)), "{socket:?}");
        drop(listener);
        assert_eq!(found(&query), Fact::Known(Vec::new()));
    }

    #[test]
    fn a_connection_that_was_closed_here_alone_has_no_whole_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, source) = listener.accept().unwrap();
        let query = SocketQuery { protocol: 6, source, destination: server.local_addr().unwrap(), interface: 1 };
        let state = || match found(&query) {
            Fact::Known(sockets) => sockets.first().map(|socket| (socket.remote, socket.state)),
            Fact::Unknown(why) => panic!("{why}"),
        };
        assert_eq!(state(), Some((Some(source), SocketState::Whole)));
        drop(server);
        let began = Instant::now();
        while state() != Some((Some(source), SocketState::Closed)) {
            assert!(began.elapsed() < PATIENCE, "{:?}", state());
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(client);
    }
}
