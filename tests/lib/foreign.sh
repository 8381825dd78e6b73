# shellcheck shell=bash
# Programs of another Debian release, the system untouched: apt resolves and downloads into a folder, the packages are
# unpacked there, and what is started there brings its own loader and libraries.
#
#   foreign_suites FOLDER SUITE...      makes FOLDER a place for packages of these suites; apt's options for it are in
#                                       the array `foreign` then
#   foreign_unpack FOLDER PACKAGE...    brings these and all that they need, and unpacks them under FOLDER/tree
#   foreign_start FOLDER PROGRAM ARG... replaces this shell by a program of FOLDER/tree
foreign_suites() {
    local folder=$1 mirror suite keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    shift
    # shellcheck disable=SC2016 # apt expands these
    mirror=$(apt-get indextargets --format '$(SITE) $(REPO_URI)' | sed -n 's,^\S*debian\.org ,,p' | grep -m1 '/debian/*$' || true)
    mirror=${mirror:-http://deb.debian.org/debian}
    mkdir -p "$folder"/{lists/partial,archives/partial,etc,tree}
    : > "$folder/status"
    for suite in "$@"; do echo "deb [signed-by=$keyring] $mirror $suite main"; done > "$folder/etc/sources.list"
    # Nothing counts as installed: so all that is needed comes, the C library too.
    foreign=(-q -o "Dir::Etc::sourcelist=$folder/etc/sources.list" -o "Dir::Etc::sourceparts=/dev/null" -o "Dir::Etc::preferencesparts=/dev/null"
        -o "Dir::Etc::preferences=/dev/null" -o "Dir::State=$folder" -o "Dir::State::lists=$folder/lists" -o "Dir::State::status=$folder/status"
        -o "Dir::Cache=$folder" -o "Dir::Cache::archives=$folder/archives" -o "APT::Install-Recommends=false"
        -o "APT::Sandbox::User=root" -o "Acquire::Languages=none")
    timeout 300 apt-get "${foreign[@]}" update
}

foreign_unpack() {
    local folder=$1 package
    shift
    timeout 900 apt-get "${foreign[@]}" install --download-only --yes "$@"
    for package in "$folder"/archives/*.deb; do dpkg-deb --extract "$package" "$folder/tree"; done
}

foreign_start() {
    local tree=$1/tree loader=usr/lib64/ld-linux-x86-64.so.2
    shift
    [ -e "$tree/$loader" ] || loader=lib64/ld-linux-x86-64.so.2
    exec "$tree/$loader" --library-path "$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu" "$tree/$1" "${@:2}"
}
