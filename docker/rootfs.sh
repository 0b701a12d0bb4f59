#!/bin/sh
# Makes the file system that the running stage of the Dockerfile holds: the server, the libraries it
# is linked to and nothing else. No shell, no package manager, nothing to keep patched but libc.
#
#   docker/rootfs.sh BINARY FOLDER
set -eu
binary=$1
folder=$2

mkdir -p "$folder/etc" "$folder/usr/local/bin"
# For whichever user the container runs as.
mkdir -p "$folder/var/lib"
mkdir -m 1777 "$folder/var/lib/gatekey"
cp "$binary" "$folder/usr/local/bin/gatekey"
chmod 755 "$folder/usr/local/bin/gatekey"

# The loader and the libraries, at the paths at which they are looked for.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$folder$(dirname "$library")"
    cp -L "$library" "$folder$library"
done

echo 'gatekey:x:65532:65532:gatekey:/var/lib/gatekey:/sbin/nologin' > "$folder/etc/passwd"
echo 'gatekey:x:65532:' > "$folder/etc/group"
# /etc/hosts before DNS, as everywhere.
echo 'hosts: files dns' > "$folder/etc/nsswitch.conf"
