//! Sockets whose queues hold something or lost something.

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::listener::Process;
use netdiag_common::observation::socket::{ListenQueue, SocketQueue, Sockets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Peer, Place, Row, Selection};

/// One socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SocketRow {
    #[serde(flatten)]
    pub place: Place,
    pub protocol: Protocol,
    /// As ss(8) spells it: `listen`, `established`, …
    pub state: String,
    pub local: String,
    pub remote: Option<Peer>,
    /// What waits for the process: connections of a listener, else bytes.
    pub receive_queue: u32,
    /// Above this many a listener refuses; 0 for others.
    pub accept_limit: u32,
    /// Bytes that wait for the network or the other end.
    pub send_queue_bytes: u32,
    /// Packets and connections that the socket dropped since it was made.
    pub drops: u64,
    /// `nginx (pid 101)`; empty when it was not found.
    pub process: String,
}

pub(super) fn rows(place: &Place, seen: &Sockets, names: &Names, selection: &Selection) -> Vec<SocketRow> {
    let listeners = seen.listeners.iter().map(|listener| of_listener(place, listener));
    let queues = seen.queues.iter().map(|queue| of_queue(place, queue, names));
    let meant = |row: &SocketRow| selection.has_reason(&[&row.state, &row.process, &row.local]);
    listeners.chain(queues).filter(meant).collect()
}

fn of_listener(place: &Place, listener: &ListenQueue) -> SocketRow {
    SocketRow {
        place: place.clone(),
        protocol: Protocol::Tcp,
        state: "listen".to_owned(),
        local: listener.address.to_string(),
        remote: None,
        receive_queue: listener.queue,
        accept_limit: listener.limit,
        send_queue_bytes: 0,
        drops: listener.drops,
        process: process(listener.process.as_ref()),
    }
}

fn of_queue(place: &Place, queue: &SocketQueue, names: &Names) -> SocketRow {
    SocketRow {
        place: place.clone(),
        protocol: queue.protocol,
        state: queue.state.clone(),
        local: queue.local.to_string(),
        remote: queue.remote.map(|remote| names.peer(remote)),
        receive_queue: queue.receive_queue_bytes,
        accept_limit: 0,
        send_queue_bytes: queue.send_queue_bytes,
        drops: queue.drops,
        process: process(queue.process.as_ref()),
    }
}

fn process(process: Option<&Process>) -> String {
    process.map(|process| format!("{} (pid {})", process.name, process.pid)).unwrap_or_default()
}

impl Row for SocketRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("proto"),
        Column::Text("state"),
        Column::Text("local"),
        Column::Text("remote"),
        Column::Number("recv-q"),
        Column::Number("limit"),
        Column::Extra("send-q"),
        Column::Number("drops"),
        Column::Text("process"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.drops, u64::from(self.receive_queue) + u64::from(self.send_queue_bytes))
    }

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        let is_listener = self.state == "listen";
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.protocol.to_string(),
            self.state.clone(),
            self.local.clone(),
            self.remote.as_ref().map(Peer::words).unwrap_or_default(),
            self.receive_queue.to_string(),
            if is_listener { self.accept_limit.to_string() } else { String::new() },
            self.send_queue_bytes.to_string(),
            self.drops.to_string(),
            self.process.clone(),
        ]
    }
}
