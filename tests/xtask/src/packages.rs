//! The Debian packages that the tests need, and their installation.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::tools;

/// Packages of the release itself, and what for.
const PACKAGES: &[&str] = &[
    // Scenarios.
    "curl",
    "iproute2",
    "iputils-ping",
    "procps",
    "python3",
    "python3-yaml",
    "util-linux",
    "shellcheck",
    // Counts instructions.
    "valgrind",
    // The lab's kernel with rebuilt modules, its initramfs, and what its jobs call.
    "binutils",
    "busybox-static",
    "cpio",
    "ethtool",
    "gcc-12",
    "kmod",
    "make",
    "pciutils",
    "xz-utils",
    "zstd",
    // DPDK's testpmd (in dpdk-dev), and the drivers that it loads at run time: nothing depends on them.
    "dpdk-dev",
    "librte-bus-vdev23",
    "librte-mempool-ring23",
    "librte-net-pcap23",
    "librte-net-tap23",
    "librte-net-vhost23",
    "librte-net-virtio23",
];

/// QEMU's model of the 82576 came with 8.0; Debian 12 itself has 7.2, so this one is from its backports.
const QEMU: &str = "qemu-system-x86";

const BACKPORTS_LIST: &str = "/etc/apt/sources.list.d/virtio-forwarder-backports.sources";

/// Installs what is missing. Touches neither network nor system when nothing is.
pub fn install() -> Result<()> {
    if !tools::installed("dpkg-query") {
        bail!("the tests need Debian packages, and this is no Debian: {}", PACKAGES.join(" "));
    }
    let versions = versions()?;
    let missing: Vec<_> = PACKAGES.iter().copied().filter(|name| !versions.contains_key(*name)).collect();
    let qemu_is_old = versions.get(QEMU).is_none_or(|version| major(version) < 8);
    if missing.is_empty() && !qemu_is_old {
        return Ok(());
    }

    let codename = codename()?;
    if codename != "bookworm" {
        bail!(
            "install by hand what is missing ({}, {QEMU} >= 8): the names are those of Debian 12",
            missing.join(" ")
        );
    }
    if tools::output(Command::new("id").arg("-u"))?.trim() != "0" {
        let qemu = if qemu_is_old { "qemu-system-x86 of bookworm-backports" } else { "" };
        bail!("not root, so these packages cannot be installed: {} {qemu}", missing.join(" "));
    }
    println!("installing {} {}", missing.join(" "), if qemu_is_old { QEMU } else { "" });
    apt(&["update", "-q"])?;
    if add_backports(&codename)? {
        apt(&["update", "-q"])?;
    }
    if !missing.is_empty() {
        apt(&[&["install", "-qy", "--no-install-recommends"], missing.as_slice()].concat())?;
    }
    if qemu_is_old {
        let suite = format!("{codename}-backports");
        apt(&["install", "-qy", "--no-install-recommends", "-t", &suite, QEMU])?;
    }
    Ok(())
}

/// The versions of the installed ones among our packages.
fn versions() -> Result<HashMap<String, String>> {
    // dpkg-query fails when it does not know one of the names, which is no error here.
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Package} ${Version}\n", QEMU])
        .args(PACKAGES)
        .output()
        .context("cannot start dpkg-query")?;
    Ok(parse_versions(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_versions(text: &str) -> HashMap<String, String> {
    let fields = text.lines().filter_map(|line| line.strip_prefix("installed ")?.split_once(' '));
    fields.map(|(name, version)| (name.to_owned(), version.to_owned())).collect()
}

/// The major number of a Debian version: 10 in `1:10.0.2+ds-2`.
fn major(version: &str) -> u32 {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn codename() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.unwrap_or_default().trim_matches('"').to_owned())
}

/// Backports come from the mirror that the release itself comes from, and are signed by the same key. The lab takes its
/// kernel from there, too. Whether they had to be added.
fn add_backports(codename: &str) -> Result<bool> {
    let suite = format!("{codename}-backports");
    let known = tools::output(Command::new("apt-cache").arg("policy"))?;
    if known.contains(&suite) || Path::new(BACKPORTS_LIST).exists() {
        return Ok(false);
    }
    let mirror =
        tools::output(Command::new("apt-get").args(["indextargets", "--format", "$(CODENAME) $(REPO_URI)"]))?;
    let uri = mirror.lines().find_map(|line| line.strip_prefix(codename)?.strip_prefix(' '));
    let text = format!(
        "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        uri.unwrap_or("http://deb.debian.org/debian")
    );
    std::fs::write(BACKPORTS_LIST, text).with_context(|| format!("cannot write {BACKPORTS_LIST}"))?;
    Ok(true)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    tools::output(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_packages_are_not_installed_ones() {
        let versions = parse_versions("installed curl 7.88.1\nconfig-files zstd 1.5\nnot-installed cpio \n");
        assert_eq!(versions.get("curl").map(String::as_str), Some("7.88.1"));
        assert_eq!(versions.len(), 1);
    }

    #[test]
    fn major_numbers() {
        assert_eq!(major("1:10.0.2+ds-2+deb13u1~bpo12+1"), 10);
        assert_eq!(major("7.2"), 7);
        assert_eq!(major(""), 0);
    }
}
