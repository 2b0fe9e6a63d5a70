//! What drivers' counters mean, by the names that each driver gives them.
//!
//! Names are those of the drivers' sources in Linux 6.18 (`drivers/net/…`); each pattern names the drivers it was read from.
//! Counters of packets and bytes that arrived well are left without a meaning on purpose.

use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::device::{DriverMeaning, DriverStatistic};

/// How a name is compared. Drivers put the queue's number into the middle or before: `rx_queue_3_drops`, `rx3_cache_full`,
/// `queue_0_rx_refil_partial`. Digits are therefore taken out first, with an underscore beside them.
enum Name {
    Is(&'static str),
    /// Also with a prefix of the queue or port: `rx_queue_drops` for `drops`.
    EndsWith(&'static str),
}

use DriverMeaning as M;
use Name::{EndsWith, Is};

const MEANINGS: &[(Name, DriverMeaning)] = &[
    // all drivers that give the counters of IEEE 802.3 and RFC 2819
    (Is("eth-phy-SymbolErrorDuringCarrier"), M::LinkFault),
    (Is("eth-mac-FrameCheckSequenceErrors"), M::ReceiveDamaged),
    (Is("eth-mac-AlignmentErrors"), M::ReceiveDamaged),
    (Is("eth-mac-InRangeLengthErrors"), M::ReceiveDamaged),
    (Is("eth-mac-OutOfRangeLengthField"), M::ReceiveDamaged),
    (Is("eth-mac-FrameTooLongErrors"), M::ReceiveDamaged),
    (Is("eth-mac-FramesLostDueToIntMACRcvError"), M::ReceiveNoBuffer),
    (Is("eth-mac-FramesLostDueToIntMACXmitError"), M::TransmitDropped),
    (Is("eth-mac-FramesAbortedDueToXSColls"), M::TransmitDropped),
    (Is("eth-mac-CarrierSenseErrors"), M::LinkFault),
    (Is("rmon-etherStatsUndersizePkts"), M::ReceiveDamaged),
    (Is("rmon-etherStatsOversizePkts"), M::ReceiveDamaged),
    (Is("rmon-etherStatsFragments"), M::ReceiveDamaged),
    (Is("rmon-etherStatsJabbers"), M::ReceiveDamaged),
    // ena (Amazon): `ena_ethtool.c`
    (Is("bw_in_allowance_exceeded"), M::AllowanceBandwidthIn),
    (Is("bw_out_allowance_exceeded"), M::AllowanceBandwidthOut),
    (Is("pps_allowance_exceeded"), M::AllowancePackets),
    (Is("conntrack_allowance_exceeded"), M::AllowanceConntrack),
    (Is("linklocal_allowance_exceeded"), M::AllowanceLinkLocal),
    (EndsWith("rx_refil_partial"), M::ReceiveNoBuffer),
    (EndsWith("rx_page_alloc_fail"), M::NoMemory),
    (EndsWith("rx_skb_alloc_fail"), M::NoMemory),
    (EndsWith("rx_dma_mapping_err"), M::NoMemory),
    (EndsWith("rx_bad_csum"), M::ReceiveChecksum),
    (EndsWith("tx_queue_stop"), M::TransmitQueueFull),
    (EndsWith("tx_missed_tx"), M::TransmitTimeout),
    (Is("tx_timeout"), M::TransmitTimeout),
    (Is("wd_expired"), M::DeviceReset),
    (Is("reset_fail"), M::DeviceReset),
    (Is("rx_overruns"), M::ReceiveNoBuffer),
    // virtio_net and veth: `rx_queue_N_drops`, `rx_queue_N_xdp_drops`, `tx_queue_N_xdp_xmit_errors`, `tx_queue_N_tx_timeouts`
    (EndsWith("xdp_drops"), M::XdpDropped),
    (EndsWith("xdp_tx_drops"), M::XdpDropped),
    (EndsWith("xdp_tx_errors"), M::XdpDropped),
    (EndsWith("xdp_xmit_errors"), M::XdpDropped),
    (EndsWith("tx_timeouts"), M::TransmitTimeout),
    (Is("rx_queue_drops"), M::ReceiveNoBuffer),
    (Is("rx_queue_hw_drop_overruns"), M::ReceiveNoBuffer),
    (Is("rx_queue_hw_drops"), M::ReceiveNoBuffer),
    (Is("tx_queue_hw_drops"), M::TransmitDropped),
    (Is("tx_queue_stop"), M::TransmitQueueFull),
    // mlx5: `mlx5/core/en_stats.c`
    (EndsWith("rx_out_of_buffer"), M::ReceiveNoBuffer),
    (EndsWith("rx_buff_alloc_err"), M::NoMemory),
    (EndsWith("rx_wqe_err"), M::ReceiveDamaged),
    (EndsWith("rx_oversize_pkts_sw_drop"), M::ReceiveDamaged),
    (EndsWith("rx_oversize_pkts_buffer"), M::ReceiveNoBuffer),
    (EndsWith("rx_steer_missed_packets"), M::ReceiveFiltered),
    (EndsWith("rx_if_down_packets"), M::ReceiveFiltered),
    (EndsWith("rx_discards_phy"), M::ReceiveNoBuffer),
    (EndsWith("rx_crc_errors_phy"), M::ReceiveDamaged),
    (EndsWith("rx_in_range_len_errors_phy"), M::ReceiveDamaged),
    (EndsWith("rx_symbol_err_phy"), M::LinkFault),
    (EndsWith("rx_pcs_symbol_err_phy"), M::LinkFault),
    (EndsWith("link_down_events_phy"), M::LinkFault),
    (EndsWith("module_bus_stuck"), M::LinkFault),
    (EndsWith("module_high_temp"), M::LinkFault),
    (EndsWith("tx_discards_phy"), M::TransmitDropped),
    (EndsWith("tx_errors_phy"), M::TransmitDropped),
    (EndsWith("tx_queue_dropped"), M::TransmitDropped),
    (EndsWith("tx_queue_stopped"), M::TransmitQueueFull),
    (EndsWith("tx_stopped"), M::TransmitQueueFull),
    (EndsWith("tx_dropped"), M::TransmitDropped),
    (EndsWith("tx_recover"), M::TransmitTimeout),
    (EndsWith("tx_cqe_err"), M::TransmitDropped),
    (EndsWith("rx_xdp_drop"), M::XdpDropped),
    (EndsWith("rx_xdp_tx_err"), M::XdpDropped),
    (EndsWith("pause_ctrl_phy"), M::Paused),
    (EndsWith("rx_pause"), M::Paused),
    (EndsWith("tx_pause"), M::Paused),
    (EndsWith("outbound_pci_stalled_wr"), M::ReceiveNoBuffer),
    // e1000, e1000e, igb, igc, ixgbe, i40e, ice, iavf (Intel)
    (Is("rx_no_dma_resources"), M::ReceiveNoBuffer),
    (Is("rx_no_buffer_count"), M::ReceiveNoBuffer),
    (Is("rx_missed_errors"), M::ReceiveNoBuffer),
    (Is("rx_fifo_errors"), M::ReceiveNoBuffer),
    (Is("rx_queue_drop_packet_count"), M::ReceiveNoBuffer),
    (EndsWith("rx_discards"), M::ReceiveNoBuffer),
    (EndsWith("rx_dropped"), M::ReceiveNoBuffer),
    (Is("rx_dropped.nic"), M::ReceiveNoBuffer),
    (Is("port.rx_dropped"), M::ReceiveNoBuffer),
    (EndsWith("alloc_rx_page_failed"), M::NoMemory),
    (EndsWith("alloc_rx_buff_failed"), M::NoMemory),
    (Is("rx_alloc_fail"), M::NoMemory),
    (Is("rx_pg_alloc_fail"), M::NoMemory),
    (EndsWith("rx_crc_errors"), M::ReceiveDamaged),
    (Is("rx_crc_errors.nic"), M::ReceiveDamaged),
    (EndsWith("rx_length_errors"), M::ReceiveDamaged),
    (Is("rx_length_errors.nic"), M::ReceiveDamaged),
    (Is("rx_long_length_errors"), M::ReceiveDamaged),
    (Is("rx_short_length_errors"), M::ReceiveDamaged),
    (Is("rx_align_errors"), M::ReceiveDamaged),
    (Is("rx_frame_errors"), M::ReceiveDamaged),
    (EndsWith("rx_undersize"), M::ReceiveDamaged),
    (EndsWith("rx_fragments"), M::ReceiveDamaged),
    (EndsWith("rx_oversize"), M::ReceiveDamaged),
    (EndsWith("rx_jabber"), M::ReceiveDamaged),
    (EndsWith("illegal_bytes"), M::LinkFault),
    (Is("illegal_bytes.nic"), M::LinkFault),
    (EndsWith("mac_local_faults"), M::LinkFault),
    (EndsWith("mac_remote_faults"), M::LinkFault),
    (Is("mac_local_faults.nic"), M::LinkFault),
    (Is("mac_remote_faults.nic"), M::LinkFault),
    (EndsWith("rx_csum_bad"), M::ReceiveChecksum),
    (EndsWith("rx_csum_offload_errors"), M::ReceiveChecksum),
    (Is("rx_csum_bad.nic"), M::ReceiveChecksum),
    (EndsWith("hw_csum_rx_error"), M::ReceiveChecksum),
    (Is("tx_restart_queue"), M::TransmitQueueFull),
    (EndsWith("tx_restart"), M::TransmitQueueFull),
    (EndsWith("tx_busy"), M::TransmitQueueFull),
    (EndsWith("tx_linearize_failed"), M::NoMemory),
    (Is("tx_timeout_count"), M::TransmitTimeout),
    (Is("tx_timeout_factor_hung"), M::TransmitTimeout),
    (EndsWith("tx_hang"), M::TransmitTimeout),
    (EndsWith("tx_dropped_link_down"), M::TransmitDropped),
    (Is("tx_dropped_link_down.nic"), M::TransmitDropped),
    (Is("tx_errors.nic"), M::TransmitDropped),
    (EndsWith("tx_errors"), M::TransmitDropped),
    (Is("tx_aborted_errors"), M::TransmitDropped),
    (Is("tx_carrier_errors"), M::LinkFault),
    (EndsWith("flow_control_xon"), M::Paused),
    (EndsWith("flow_control_xoff"), M::Paused),
    (EndsWith("link_xon_rx"), M::Paused),
    (EndsWith("link_xoff_rx"), M::Paused),
    // gve (Google)
    (EndsWith("rx_dropped_pkt"), M::ReceiveNoBuffer),
    (EndsWith("rx_copybreak_drop"), M::NoMemory),
    (EndsWith("rx_no_buffers_posted"), M::ReceiveNoBuffer),
    (EndsWith("rx_no_refill_dropped_pkt"), M::ReceiveNoBuffer),
    (Is("rx_skb_alloc_fail"), M::NoMemory),
    (Is("rx_buf_alloc_fail"), M::NoMemory),
    (Is("rx_desc_err_dropped_pkt"), M::ReceiveDamaged),
    (EndsWith("tx_dma_mapping_error"), M::NoMemory),
    (EndsWith("tx_stop"), M::TransmitQueueFull),
    (Is("interface_down_cnt"), M::DeviceReset),
    (Is("reset_cnt"), M::DeviceReset),
    // hv_netvsc and mana (Microsoft)
    (Is("tx_no_memory"), M::NoMemory),
    (Is("tx_no_space"), M::TransmitQueueFull),
    (Is("tx_too_big"), M::TransmitDropped),
    (Is("tx_send_full"), M::TransmitQueueFull),
    (Is("rx_comp_busy"), M::ReceiveNoBuffer),
    (Is("rx_no_memory"), M::NoMemory),
    (Is("stop_queue"), M::TransmitQueueFull),
    (Is("vf_tx_dropped"), M::TransmitDropped),
    (Is("hc_rx_discards_no_wqe"), M::ReceiveNoBuffer),
    (Is("hc_tx_err_gdma"), M::TransmitDropped),
    (Is("rx_coalesced_err"), M::ReceiveDamaged),
    // vmxnet3 (VMware), whose names are sentences
    (EndsWith("pkts rx out of buf"), M::ReceiveNoBuffer),
    (EndsWith("rx buf alloc fail"), M::NoMemory),
    (EndsWith("drv dropped rx total"), M::ReceiveDamaged),
    (EndsWith("pkts rx err"), M::ReceiveDamaged),
    (EndsWith("drv dropped tx total"), M::TransmitDropped),
    (EndsWith("ring full"), M::TransmitQueueFull),
    (EndsWith("pkts tx discard"), M::TransmitDropped),
    (EndsWith("pkts tx err"), M::TransmitDropped),
    (EndsWith("tx timeout count"), M::TransmitTimeout),
    // bnxt_en, tg3, bnx2x (Broadcom)
    (EndsWith("rx_buf_errors"), M::ReceiveNoBuffer),
    (EndsWith("rx_oom_discards"), M::NoMemory),
    (EndsWith("rx_netpoll_discards"), M::ReceiveNoBuffer),
    (EndsWith("missed_irqs"), M::TransmitTimeout),
    (EndsWith("rx_fcs_err_frames"), M::ReceiveDamaged),
    (EndsWith("tx_discards"), M::TransmitDropped),
    (EndsWith("rx_l4_csum_errors"), M::ReceiveChecksum),
    (EndsWith("rxbds_empty"), M::ReceiveNoBuffer),
    (EndsWith("rx_brb_discard"), M::ReceiveNoBuffer),
    (EndsWith("rx_filtered_packets"), M::ReceiveFiltered),
    (EndsWith("rx_mf_tag_discard"), M::ReceiveFiltered),
];

/// Each counter with what it means, where that is known.
pub(super) fn with_meanings(statistics: Vec<(String, u64)>) -> Vec<DriverStatistic> {
    let own = |(name, value): (String, u64)| DriverStatistic {
        meaning: meaning(&name),
        name,
        counter: Counter { value, ..Counter::default() },
    };
    statistics.into_iter().map(own).collect()
}

fn meaning(name: &str) -> Option<DriverMeaning> {
    let plain = without_numbers(name);
    let matches = |pattern: &Name| match pattern {
        Is(whole) => plain == *whole || name == *whole,
        EndsWith(end) => name.ends_with(end) || plain.ends_with(end),
    };
    MEANINGS.iter().find(|(pattern, _)| matches(pattern)).map(|(_, meaning)| *meaning)
}

/// `rx_queue_3_drops` is `rx_queue_drops`, `rx3_stopped` is `rx_stopped`, `rx_dropped_pkt[0]` is `rx_dropped_pkt`.
fn without_numbers(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for c in name.chars().filter(|c| !c.is_ascii_digit() && !matches!(c, '[' | ']')) {
        if c == '_' && (plain.is_empty() || plain.ends_with('_')) {
            continue;
        }
        plain.push(c.to_ascii_lowercase());
    }
    plain.trim_end_matches(['_', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drivers() {
        let known = [
            ("bw_in_allowance_exceeded", M::AllowanceBandwidthIn),
            ("conntrack_allowance_exceeded", M::AllowanceConntrack),
            ("queue_3_rx_refil_partial", M::ReceiveNoBuffer),
            ("rx_queue_12_drops", M::ReceiveNoBuffer),
            ("rx_queue_0_xdp_drops", M::XdpDropped),
            ("tx_queue_1_xdp_xmit_errors", M::XdpDropped),
            ("rx_out_of_buffer", M::ReceiveNoBuffer),
            ("rx_vport_out_of_buffer_rx_out_of_buffer", M::ReceiveNoBuffer),
            ("tx3_stopped", M::TransmitQueueFull),
            ("rx_discards_phy", M::ReceiveNoBuffer),
            ("rx_no_dma_resources", M::ReceiveNoBuffer),
            ("port.rx_crc_errors", M::ReceiveDamaged),
            ("rx_dropped.nic", M::ReceiveNoBuffer),
            ("rx_dropped_pkt[7]", M::ReceiveNoBuffer),
            ("rx_no_buffers_posted[0]", M::ReceiveNoBuffer),
            ("  pkts rx out of buf", M::ReceiveNoBuffer),
            ("  ring full", M::TransmitQueueFull),
            ("tx_no_space", M::TransmitQueueFull),
            ("[3]: rx_oom_discards", M::NoMemory),
            ("eth-mac-FrameCheckSequenceErrors", M::ReceiveDamaged),
        ];
        for (name, expected) in known {
            assert_eq!(meaning(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_arrives_well_has_no_meaning() {
        for name in
            ["rx_packets", "tx_queue_0_bytes", "rx5_csum_complete", "peer_ifindex", "rx_queue_0_kicks", "suspend"]
        {
            assert_eq!(meaning(name), None, "{name}");
        }
    }
}
