#!/bin/sh
# Installs what `cargo build --release` has built, where packages put it, below DESTDIR (default: /).
# Files of yours in /etc are kept.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dest=${DESTDIR:-}
built=${CARGO_TARGET_DIR:-$here/../target}/release

install -D -m 755 "$built/virtio-forwarder" "$dest/usr/bin/virtio-forwarder"
install -D -m 755 "$built/port_control" "$dest/usr/bin/port_control"
install -D -m 644 "$here/systemd/virtio-forwarder.service" "$dest/usr/lib/systemd/system/virtio-forwarder.service"
install -D -m 644 "$here/systemd/vfio-rebind.service" "$dest/usr/lib/systemd/system/vfio-rebind.service"
install -D -m 644 "$here/tmpfiles.d/virtio-forwarder.conf" "$dest/usr/lib/tmpfiles.d/virtio-forwarder.conf"
install -D -m 644 "$here/man/virtio-forwarder.8" "$dest/usr/share/man/man8/virtio-forwarder.8"
install -D -m 644 "$here/man/port_control.8" "$dest/usr/share/man/man8/port_control.8"
install -D -m 644 "$here/config.toml" "$dest/usr/share/doc/virtio-forwarder/examples/config.toml"
for example in "$here"/examples/*; do
    install -D -m 755 "$example" "$dest/usr/share/doc/virtio-forwarder/examples/$(basename "$example")"
done
# Where the shells look: Debian's zsh elsewhere than others.
zsh=zsh/site-functions
[ ! -e /etc/debian_version ] || zsh=zsh/vendor-completions
for program in port_control virtio-forwarder; do
    mkdir -p "$dest/usr/share/bash-completion/completions" "$dest/usr/share/fish/vendor_completions.d" "$dest/usr/share/$zsh"
    "$built/$program" completions bash > "$dest/usr/share/bash-completion/completions/$program"
    "$built/$program" completions fish > "$dest/usr/share/fish/vendor_completions.d/$program.fish"
    "$built/$program" completions zsh > "$dest/usr/share/$zsh/_$program"
done
mkdir -p "$dest/usr/share/virtio-forwarder/vfio-wc"
cp "$here"/vfio-wc/* "$dest/usr/share/virtio-forwarder/vfio-wc/"
[ -e "$dest/etc/default/virtioforwarder" ] ||
    install -D -m 644 "$here/default/virtioforwarder" "$dest/etc/default/virtioforwarder"

grep -v '^#' "$here/links" | while read -r target link; do
    mkdir -p "$(dirname "$dest/$link")"
    ln -sfn "/$target" "$dest/$link"
done
