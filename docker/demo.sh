#!/bin/sh
# Run the demo on a Ray cluster in containers, with its run on an S3 store. Needs docker with compose.
set -eu
cd "$(dirname "$0")"

random() {  # the given number of hexadecimal digits
    od -An -N"$(($1 / 2))" -tx1 /dev/urandom | tr -d ' \n'
}

if [ ! -f .env ]; then
    umask 077
    {
        echo "# Random secrets of this machine's demo cluster. Delete the file to make new ones."
        echo "AWS_ACCESS_KEY_ID=$(random 20)"
        echo "AWS_SECRET_ACCESS_KEY=$(random 40)"
        echo "RAY_AUTH_TOKEN=$(random 64)"
    } > .env
fi
docker compose -f compose.yaml up --build --abort-on-container-exit --exit-code-from demo
rm -rf report  # docker copies into an existing folder, not over it
docker compose -f compose.yaml cp store:/store/ontogeny/demo/report ./report
echo "The report: $(pwd)/report/index.html"
