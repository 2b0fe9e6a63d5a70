//! Sockets added up as they stream in: a namespace may have a hundred thousand, of which a few are worth telling.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use netdiag_common::observation::Protocol;
use netdiag_common::observation::socket::{ListenQueue, LocalPorts, SocketQueue, SocketState};

use super::diag::{LISTEN, SYN_RECEIVED, Socket, state_name};
use super::ports::{PortTally, Range};

/// Listening sockets told: one per port and address.
const MAX_LISTENERS: usize = 1_024;
/// Other sockets told.
const MAX_QUEUES: usize = 64;
/// Sockets kept while they stream in, before the less interesting ones are dropped.
const KEPT_QUEUES: usize = 16 * MAX_QUEUES;

pub(super) struct Tally {
    states: BTreeMap<(Protocol, u8), u64>,
    /// With their inodes.
    listeners: Vec<(u64, ListenQueue)>,
    omitted_listeners: usize,
    queues: Vec<Socket>,
    /// Port → connections in their handshake.
    half_open: HashMap<u16, u64>,
    ports: PortTally,
}

/// With the inodes by which processes hold them.
pub(super) struct Tallied {
    pub(super) states: Vec<SocketState>,
    pub(super) listeners: Vec<(u64, ListenQueue)>,
    pub(super) queues: Vec<(u64, SocketQueue)>,
    pub(super) ports: LocalPorts,
}

impl Tally {
    pub(super) fn new(range: Range) -> Self {
        Self {
            states: BTreeMap::new(),
            listeners: Vec::new(),
            omitted_listeners: 0,
            queues: Vec::new(),
            half_open: HashMap::new(),
            ports: PortTally::new(range),
        }
    }

    pub(super) fn add(&mut self, socket: Socket) {
        *self.states.entry((socket.protocol, socket.state)).or_default() += 1;
        let is_tcp = socket.protocol == Protocol::Tcp;
        if is_tcp && socket.state == LISTEN {
            self.add_listener(&socket);
            return;
        }
        if is_tcp && socket.state == SYN_RECEIVED {
            *self.half_open.entry(socket.local.port()).or_default() += 1;
        }
        if is_tcp && socket.remote.port() != 0 {
            self.ports.add(socket.local, socket.remote);
        }
        if interest(&socket) > 0 {
            self.queues.push(socket);
            if self.queues.len() >= KEPT_QUEUES {
                self.keep_most();
            }
        }
    }

    fn add_listener(&mut self, socket: &Socket) {
        if self.listeners.len() >= MAX_LISTENERS {
            self.omitted_listeners += 1;
            return;
        }
        let listener = ListenQueue {
            address: socket.local,
            queue: socket.receive_queue,
            limit: socket.send_queue,
            drops: u64::from(socket.drops),
            half_open: 0,
            process: None,
        };
        self.listeners.push((socket.inode, listener));
    }

    fn keep_most(&mut self) {
        self.queues.sort_by_key(|socket| Reverse(interest(socket)));
        self.queues.truncate(MAX_QUEUES);
    }

    pub(super) fn finish(mut self, left_out: &mut Vec<String>) -> Tallied {
        if self.omitted_listeners > 0 {
            left_out.push(format!("{} listening sockets after the first {MAX_LISTENERS}", self.omitted_listeners));
        }
        for (_, listener) in &mut self.listeners {
            listener.half_open = self.half_open.get(&listener.address.port()).copied().unwrap_or(0);
        }
        self.listeners.sort_by_key(|(_, listener)| {
            let share = u64::from(listener.queue) * 1_000 / u64::from(listener.limit).max(1);
            (Reverse(share), Reverse(listener.drops), listener.address)
        });
        self.keep_most();
        let state = |((protocol, state), count)| SocketState { protocol, state: state_name(protocol, state), count };
        Tallied {
            states: self.states.into_iter().map(state).collect(),
            listeners: self.listeners,
            queues: self.queues.into_iter().map(queue).collect(),
            ports: self.ports.finish(left_out),
        }
    }
}

/// The more bytes wait, the more; every dropped packet counts as a kilobyte, about what it held.
fn interest(socket: &Socket) -> u64 {
    u64::from(socket.receive_queue) + u64::from(socket.send_queue) + 1_024 * u64::from(socket.drops)
}

fn queue(socket: Socket) -> (u64, SocketQueue) {
    let queue = SocketQueue {
        protocol: socket.protocol,
        state: state_name(socket.protocol, socket.state),
        local: socket.local,
        remote: (socket.remote.port() != 0).then_some(socket.remote),
        receive_queue_bytes: socket.receive_queue,
        send_queue_bytes: socket.send_queue,
        receive_buffer_bytes: socket.receive_buffer,
        receive_memory_bytes: socket.receive_memory,
        drops: u64::from(socket.drops),
        process: None,
    };
    (socket.inode, queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(protocol: Protocol, state: u8, port: u16) -> Socket {
        Socket {
            protocol,
            state,
            local: ([10, 0, 0, 1], port).into(),
            remote: ([10, 0, 0, 2], if state == LISTEN { 0 } else { 443 }).into(),
            receive_queue: 0,
            send_queue: 0,
            inode: u64::from(port),
            receive_memory: 0,
            receive_buffer: 0,
            drops: 0,
        }
    }

    fn tally(sockets: impl IntoIterator<Item = Socket>) -> Tallied {
        let mut tally = Tally::new(Range { first: 32_768, last: 60_999 });
        sockets.into_iter().for_each(|socket| tally.add(socket));
        tally.finish(&mut Vec::new())
    }

    #[test]
    fn fullest_listener_is_first_with_its_handshakes() {
        let listener = |port, queue, limit| Socket {
            receive_queue: queue,
            send_queue: limit,
            ..socket(Protocol::Tcp, LISTEN, port)
        };
        let handshake = socket(Protocol::Tcp, SYN_RECEIVED, 81);
        let found = tally([listener(80, 100, 4_096), listener(81, 9, 8), handshake]);
        let order: Vec<_> = found.listeners.iter().map(|(_, l)| (l.address.port(), l.half_open)).collect();
        assert_eq!(order, [(81, 1), (80, 0)]);
    }

    #[test]
    fn a_hundred_thousand_idle_sockets_are_counted_and_one_stuck_is_told() {
        let idle = (0..100_000u32).map(|n| socket(Protocol::Tcp, 6, u16::try_from(n % 60_000).unwrap()));
        let stuck = Socket { send_queue: 4_000_000, ..socket(Protocol::Tcp, 1, 40_000) };
        let dropping = Socket { drops: 7, ..socket(Protocol::Udp, 7, 53) };
        let found = tally(idle.chain([stuck, dropping]));
        let told: Vec<_> = found.queues.iter().map(|(_, queue)| (queue.local.port(), queue.drops)).collect();
        assert_eq!(told, [(40_000, 0), (53, 7)]);
        let states: Vec<_> = found.states.iter().map(|s| (s.state.as_str(), s.count)).collect();
        assert_eq!(states, [("established", 1), ("time-wait", 100_000), ("unconnected", 1)]);
    }

    #[test]
    fn only_the_largest_queues_are_told() {
        let waiting = (1..=5_000u16).map(|n| Socket { receive_queue: u32::from(n), ..socket(Protocol::Tcp, 1, n) });
        let found = tally(waiting);
        assert_eq!(found.queues.len(), MAX_QUEUES);
        assert_eq!(found.queues[0].1.receive_queue_bytes, 5_000);
        assert_eq!(found.queues[MAX_QUEUES - 1].1.receive_queue_bytes, 4_937);
    }
}
