#!/bin/bash
# Check everything about a release, build it, and tag it here: scripts/release.sh X.Y.Z. Nothing is published: the last
# lines say what does. Whatever is not as it should be ends it before the tag.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
fail() { echo "no release: $1" >&2; exit 1; }
version=${1:-}
[[ "$version" =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "name the version: scripts/release.sh X.Y.Z"
[ "$(git branch --show-current)" = main ] || fail "the branch is not main"
[ -z "$(git status --porcelain)" ] || fail "something is not committed"
! git rev-parse -q --verify "refs/tags/v$version" > /dev/null || fail "the tag v$version is there already"
grep -qx "__version__ = \"$version\"" src/prunus/version.py || fail "src/prunus/version.py has another version"
grep -Eq "^## ${version//./\\.} \([0-9]{4}-[0-9]{2}-[0-9]{2}\)$" CHANGELOG.md || fail "CHANGELOG.md has no ## $version (YYYY-MM-DD)"
! grep -q "(unreleased)" CHANGELOG.md || fail "CHANGELOG.md still says (unreleased)"
grep -Eq "^version: \"?${version//./\\.}\"?$" CITATION.cff || fail "CITATION.cff has another version"
make check
make dist PYTHONS="${PYTHONS:-python3.11 python3.14}"
[ -z "$(git status --porcelain)" ] || fail "the checks changed files"
wheel=$(ls dist/*.whl)
[ "$wheel" = "dist/prunus-$version-py3-none-any.whl" ] || fail "built $wheel"
git tag "v$version"
echo "tagged v$version. Now: git push origin main v$version && .venv/bin/twine upload dist/*"
