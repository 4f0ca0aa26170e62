#!/bin/sh
# Makes the files of docker/secrets for compose.yaml: an authority, a certificate for "server", a token for 90 days.
# For local tests only; a deployment has its own authority. Needs openssl and the model-factory command.
set -eu
for command in openssl model-factory; do
    if ! command -v "$command" >/dev/null; then
        echo "this needs the command $command; model-factory comes with: pip install ./server, or is in the image" >&2
        exit 1
    fi
done
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
cd secrets
if [ -e tokens ]; then
    echo "docker/secrets has files already: remove them first" >&2
    exit 1
fi
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj "/CN=model-factory" \
    -keyout ca.key -out ca.crt 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=server" -keyout tls.key -out tls.csr 2>/dev/null
echo "subjectAltName=DNS:server,DNS:localhost,IP:127.0.0.1" >san.txt
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 90 -extfile san.txt -out tls.crt 2>/dev/null
rm -f tls.csr san.txt ca.srl
said=$(model-factory token trainer --days 90)
echo "$said" | sed -n "s/^for the client's token file: //p" >token
echo "$said" | sed -n "s/^for the server's --tokens file: //p" >tokens
# The containers run as user 10001; compose mounts files with their owner and mode.
chmod 0644 tls.crt ca.crt
chmod 0644 tls.key tokens token
