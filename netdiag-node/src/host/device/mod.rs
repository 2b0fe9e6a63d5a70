//! Network devices of one namespace with everything the kernel counts about them; for the node also the CPUs' backlogs.

mod driver;
mod link;
mod meaning;
mod queue;
mod softnet;
mod standard;
mod wireguard;
mod xfrm;

use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::device::{Device, Devices};
use nix::sys::socket::SockProtocol;

use super::ReadError;
use super::netlink::Netlink;
use crate::history::{Seen, object};

/// A node has one veth a pod, a few hundred at most.
const MAX_DEVICES: usize = 4_096;
/// Devices whose driver is asked for its numbers: each takes three system calls.
const MAX_ASKED_DRIVERS: usize = 512;
/// Queueing disciplines told of one device: a NIC has one a queue.
const MAX_QUEUES: usize = 128;

/// Whose devices: CPUs' backlogs belong to the node and to no pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Node,
    Pod,
}

/// The calling thread's namespace, counters at 0 included.
pub(crate) fn read(scope: Scope) -> Result<Devices, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let mut left_out = Vec::new();
    let mut devices = link::read(&mut netlink)?;
    if devices.len() > MAX_DEVICES {
        left_out.push(format!("{} of {} devices", devices.len() - MAX_DEVICES, devices.len()));
        devices.truncate(MAX_DEVICES);
    }
    add_queues(&mut devices, queue::read(&mut netlink)?, &mut left_out);
    add_drivers(&mut devices, &mut left_out)?;
    let wireguard = wireguard::read(&devices, &mut left_out)?;
    let softnet = if scope == Scope::Node { softnet::read()? } else { Vec::new() };
    Ok(Devices { since: None, window_s: 0.0, devices, softnet, xfrm: xfrm::read()?, wireguard, left_out })
}

fn add_queues(devices: &mut [Device], queues: Vec<queue::Found>, left_out: &mut Vec<String>) {
    let mut omitted = 0;
    for queue::Found { link_index, qdisc } in queues {
        let Ok(at) = devices.binary_search_by_key(&link_index, |device| device.index) else { continue };
        let of_device = &mut devices[at].queues;
        if of_device.len() < MAX_QUEUES {
            of_device.push(qdisc);
        } else {
            omitted += 1;
        }
    }
    if omitted > 0 {
        left_out.push(format!("{omitted} queueing disciplines of devices that have more than {MAX_QUEUES}"));
    }
}

fn add_drivers(devices: &mut [Device], left_out: &mut Vec<String>) -> Result<(), ReadError> {
    let mut ethtool = driver::Ethtool::open()?;
    let has_hardware = devices.iter().any(is_hardware);
    let mut standard = if has_hardware { standard::Standard::open()? } else { None };
    let may_count = devices.iter_mut().filter(|device| driver::may_count(&device.kind, &device.name));
    for (position, device) in may_count.enumerate() {
        if position == MAX_ASKED_DRIVERS {
            left_out.push(format!("driver statistics of devices after the first {MAX_ASKED_DRIVERS}"));
            break;
        }
        match ethtool.read(&device.name) {
            Ok(Some(mut found)) => {
                if let Some(standard) = standard.as_mut().filter(|_| is_hardware(device)) {
                    match standard.read(device.index, &device.name) {
                        Ok(statistics) => found.statistics.extend(statistics),
                        Err(error) => left_out.push(error.to_string()),
                    }
                }
                device.driver_statistics = meaning::with_meanings(found.statistics);
                if found.omitted > 0 {
                    left_out.push(format!("{} driver statistics of {}", found.omitted, device.name));
                }
                device.driver = Some(found.driver);
            }
            Ok(None) => {}
            Err(error) => left_out.push(format!("driver statistics of {}: {error}", device.name)),
        }
    }
    Ok(())
}

/// Only drivers of NICs have counters that standards name.
fn is_hardware(device: &Device) -> bool {
    device.kind.is_empty() && device.name != "lo"
}

/// Every counter, for [`Series::look`](crate::history::Series::look).
pub(crate) fn counters(found: &mut Devices) -> Vec<Seen<'_>> {
    let mut all = Vec::new();
    for device in &mut found.devices {
        let link = object("link", &device.index.to_ne_bytes());
        all.push(Seen { object: link, name: "carrier_up", counter: &mut device.carrier_up });
        all.push(Seen { object: link, name: "carrier_down", counter: &mut device.carrier_down });
        let named = device.statistics.iter_mut();
        all.extend(named.map(|(name, counter)| Seen { object: link, name, counter }));
        let driver = object("driver", &device.index.to_ne_bytes());
        let named = device.driver_statistics.iter_mut();
        all.extend(named.map(|own| Seen { object: driver, name: &own.name, counter: &mut own.counter }));
        for queue in &mut device.queues {
            let name = format!("{} {} {} {}", device.index, queue.kind, queue.handle, queue.parent);
            let object = object("queue", name.as_bytes());
            let mut add = |name, counter| all.push(Seen { object, name, counter });
            add("bytes", &mut queue.bytes);
            add("packets", &mut queue.packets);
            add("drops", &mut queue.drops);
            add("overlimits", &mut queue.overlimits);
            add("requeues", &mut queue.requeues);
        }
    }
    for cpu in &mut found.softnet {
        let object = object("softnet", &cpu.cpu.to_ne_bytes());
        let mut add = |name, counter| all.push(Seen { object, name, counter });
        add("processed", &mut cpu.processed);
        add("dropped", &mut cpu.dropped);
        add("time_squeeze", &mut cpu.time_squeeze);
        add("received_rps", &mut cpu.received_rps);
        add("flow_limit", &mut cpu.flow_limit);
    }
    if let Some(xfrm) = &mut found.xfrm {
        let object = object("xfrm", &[]);
        all.extend(xfrm.iter_mut().map(|(name, counter)| Seen { object, name, counter }));
    }
    all
}

/// Drops the counters that are 0, which the answer does not list.
pub(crate) fn strip_zeros(found: &mut Devices) {
    for device in &mut found.devices {
        device.statistics.retain(|_, counter| is_told(counter));
        device.driver_statistics.retain(|own| is_told(&own.counter));
    }
    if let Some(xfrm) = &mut found.xfrm {
        xfrm.retain(|_, counter| is_told(counter));
    }
}

fn is_told(counter: &Counter) -> bool {
    counter.value > 0 || counter.was_reset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_of_this_machine() {
        let mut found = read(Scope::Node).unwrap();
        assert!(counters(&mut found).iter().any(|seen| seen.name == "rx_nohandler"), "zeros are there for the history");
        strip_zeros(&mut found);
        let loopback = found.devices.iter().find(|device| device.name == "lo").unwrap();
        assert!(loopback.up && loopback.queues.is_empty());
        assert_eq!(found.softnet.len(), found.softnet.iter().map(|cpu| cpu.cpu).max().unwrap() as usize + 1);
        assert!(found.devices.iter().all(|device| device.statistics.values().all(|counter| counter.value > 0)));
    }

    #[test]
    fn pods_have_no_backlog_of_their_own() {
        assert!(read(Scope::Pod).unwrap().softnet.is_empty());
    }
}
