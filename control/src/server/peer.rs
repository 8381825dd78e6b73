//! Who may use the control socket: root, the daemon's own user, the socket's owner, members of the configured group.
//!
//! The mode of the socket file says the same to the kernel. This check holds even if somebody loosens the mode.

use std::fs;

use rustix::process::geteuid;
use tokio::net::UnixStream;

/// The rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    own: u32,
    owner: Option<u32>,
    group: Option<u32>,
}

impl Policy {
    pub(super) fn new(owner: Option<u32>, group: Option<u32>) -> Self {
        Self { own: geteuid().as_raw(), owner, group }
    }

    /// Whether the process at the other end may give orders; if not, the reason.
    pub(super) fn check(&self, socket: &UnixStream) -> Result<(), String> {
        let peer =
            socket.peer_cred().map_err(|error| format!("the kernel does not tell who you are: {error}"))?;
        let (uid, gid) = (peer.uid(), peer.gid());
        // A process in a PID namespace that we do not see has no number here.
        let groups = || peer.pid().map(|pid| supplementary_groups(pid, uid)).unwrap_or_default();
        self.allows(uid, gid, groups).then_some(()).ok_or_else(|| {
            format!("user {uid} is neither root nor the daemon's user nor a member of the control group")
        })
    }

    fn allows(&self, uid: u32, gid: u32, groups: impl FnOnce() -> Vec<u32>) -> bool {
        uid == 0
            || uid == self.own
            || self.owner == Some(uid)
            || self.group.is_some_and(|group| gid == group || groups().contains(&group))
    }
}

/// Supplementary groups of process `pid`, as long as it still belongs to `uid`: if another process has taken the number
/// since, it is at least one that the same user could have used for the same purpose.
fn supplementary_groups(pid: i32, uid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .map(|status| groups_of(&status, uid))
        .unwrap_or_default()
}

fn groups_of(status: &str, uid: u32) -> Vec<u32> {
    let numbers = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u32>>()
    };
    // "Uid:" has the real, effective, saved and file system user.
    if numbers("Uid:").get(1) == Some(&uid) { numbers("Groups:") } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { own: 990, owner: Some(64055), group: Some(107) };

    #[test]
    fn root_the_daemon_the_owner_and_the_group_are_let_in() {
        let none = Vec::new;
        assert!(POLICY.allows(0, 0, none));
        assert!(POLICY.allows(990, 990, none));
        assert!(POLICY.allows(64055, 1, none));
        assert!(POLICY.allows(1000, 107, none));
        assert!(POLICY.allows(1000, 1000, || vec![4, 107]));
    }

    #[test]
    fn others_are_not() {
        assert!(!POLICY.allows(1000, 1000, || vec![4]));
        let closed = Policy { own: 990, owner: None, group: None };
        assert!(!closed.allows(1000, 107, || vec![0, 107]));
    }

    #[test]
    fn groups_count_only_while_the_process_has_the_same_user() {
        let status =
            "Name:\tcurl\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t4 107 \n";
        assert_eq!(groups_of(status, 1000), [4, 107]);
        assert!(groups_of(status, 1001).is_empty());
    }
}
