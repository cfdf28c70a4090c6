//! The rules of a host, as the tools of others show them.

use std::process::Command;

use lb_tests::lab::Host;

/// What `nft` and iptables list, without counters and dates.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    nftables: String,
    iptables: String,
}

/// What the kubelet, a CNI plugin and an operator might have made, and must find again. Every base chain that kube-proxy
/// needs is among it, since iptables makes those and leaves them.
const OF_OTHERS: &str = "
nft 'table inet mine { chain input { type filter hook input priority 10; tcp dport 4242 counter drop; }; }'
for i in iptables ip6tables; do
    for table in nat filter mangle; do $i -t $table -N KUBE-KUBELET-CANARY; done
    $i -t mangle -N KUBE-IPTABLES-HINT
    $i -N KUBE-FIREWALL; $i -A INPUT -j KUBE-FIREWALL; $i -A OUTPUT -j KUBE-FIREWALL
    $i -A FORWARD -p tcp --dport 4243 -j DROP
    $i -t nat -N CNI-MINE; $i -t nat -A CNI-MINE -p udp --dport 4244 -j ACCEPT
    for chain in PREROUTING OUTPUT POSTROUTING; do $i -t nat -A $chain -p udp --dport 4244 -j CNI-MINE; done
done
iptables -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment 'block incoming localnet connections' \
    -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE";

impl Rules {
    /// Makes those of others on a host.
    pub(crate) fn made_by_others(host: &Host) -> Self {
        shell(host, OF_OTHERS);
        Self::list(host)
    }

    pub(crate) fn list(host: &Host) -> Self {
        let save = "for i in iptables-save ip6tables-save; do $i; done | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'";
        Self { nftables: shell(host, "nft -s list ruleset"), iptables: shell(host, save) }
    }

    pub(crate) fn has_keepalive(&self) -> bool {
        self.nftables.contains("lb-nat-keepalive")
    }

    /// Without the tables that the agent makes, which must be these and no others.
    pub(crate) fn without_keepalive(self) -> Self {
        let mut nftables = self.nftables;
        for family in ["ip", "ip6"] {
            let table = format!(
                "table {family} lb-nat-keepalive {{\n\tchain postrouting {{\n\
                 \t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\tct state established\n\t}}\n}}\n"
            );
            assert!(nftables.contains(&table), "{nftables}");
            nftables = nftables.replace(&table, "");
        }
        Self { nftables, ..self }
    }
}

/// Runs a shell's commands on a host, and gives their output. Panics if one fails.
pub(crate) fn shell(host: &Host, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    let output = host.run(move || command.output()).expect("run a shell");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).expect("text")
}
