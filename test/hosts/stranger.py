"""A client of seeder's transfer port that was written from docs/protocol.md alone.

    stranger.py SECRET-FILE HOST:PORT REFERENCE

It joins nothing. It pulls the catalog, checks the record of the reference, fetches
every chunk of the image, and checks each against the seed index and each blob
against its digest.
"""

import base64
import datetime
import hashlib
import http.client
import json
import ssl
import subprocess
import sys
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def derive(secret, use):
    info = b"seeder " + use + b" v1"
    return HKDF(hashes.SHA256(), 32, salt=b"seeder v1", info=info).derive(secret)


def stretched(line):
    """The secret that a line of the secret file stands for."""
    try:
        generated = len(line) == 43 and len(base64.b64decode(line + b"=", b"-_", validate=True)) == 32
    except ValueError:
        generated = False
    if generated:
        return line
    return hashlib.scrypt(line, salt=b"seeder secret v1", n=32768, r=8, p=1, maxmem=64 << 20, dklen=32)


def public_bytes(key):
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def node_id(public):
    return base64.b32encode(hashlib.sha256(public).digest()[:20]).decode().lower()


def certificate(subject, serial, public, signer, *extensions):
    def name(cn):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn, _type=_ASN1Type.PrintableString)])

    b = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name("seeder cluster CA"))
        .serial_number(serial)
        .public_key(public)
        .not_valid_before(datetime.datetime(1970, 1, 1, 0, 0, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59))
    )
    for extension, critical in extensions:
        b = b.add_extension(extension, critical)
    return b.sign(signer, None).public_bytes(serialization.Encoding.PEM)


def usage(**yes):
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment"]
    names += ["key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{n: yes.get(n, False) for n in names})


def context(secret):
    """TLS as a node speaks it, with an identity that was made a moment ago."""
    ca_key = Ed25519PrivateKey.from_private_bytes(derive(secret, b"cluster CA"))
    ca = certificate(
        "seeder cluster CA", 1, ca_key.public_key(), ca_key,
        (x509.BasicConstraints(ca=True, path_length=0), True), (usage(key_cert_sign=True), True),
    )
    key = Ed25519PrivateKey.generate()
    both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    leaf = certificate(
        node_id(public_bytes(key.public_key())), 2, key.public_key(), ca_key,
        (usage(digital_signature=True), True), (x509.ExtendedKeyUsage(both), False),
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.check_hostname = False  # any host may hold the secret
    tls.load_verify_locations(cadata=ca.decode())
    tls.set_alpn_protocols(["http/1.1"])
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with tempfile.NamedTemporaryFile() as f:
        f.write(private + leaf)
        f.flush()
        tls.load_cert_chain(f.name)
    return tls


def uvarint(b):
    value = shift = 0
    for i, byte in enumerate(b):
        value |= (byte & 127) << shift
        if byte < 128:
            return value, b[i + 1:]
        shift += 7
    raise ValueError("a number is cut off")


def records(answer):
    while answer:
        size, answer = uvarint(answer)
        yield answer[:size]
        answer = answer[size:]


def announcement(record):
    public, signature = record[1:33], record[33:97]
    size, payload = uvarint(record[97:])
    assert record[0] == 1 and size == len(payload)
    signed = b"seeder announcement v1" + b"\0" + payload
    Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)  # raises
    return json.loads(payload)


def summary(all_records):
    buckets = [0] * 256
    for r in all_records:
        bucket = hashlib.sha256(announcement(r)["ref"].encode()).digest()[0]
        buckets[bucket] ^= int.from_bytes(hashlib.sha256(r).digest()[:8], "big")
    return b"".join(b.to_bytes(8, "big") for b in buckets)


def sha256(b):
    return "sha256:" + hashlib.sha256(b).hexdigest()


def main(secret_file, address, reference):
    lines = [line.strip() for line in open(secret_file, "rb")]
    secret = [line for line in lines if line and not line.startswith(b"#")][0]
    conn = http.client.HTTPSConnection(address, context=context(stretched(secret)), timeout=15)

    def ask(method, path, body=None):
        conn.request(method, path, body)
        answer = conn.getresponse()
        return answer, answer.read()

    answer, _ = ask("HEAD", "/")
    assert answer.status == 404, answer.status
    _, body = ask("POST", "/v1/catalog", bytes(2048))
    catalog = list(records(body))
    _, rest = ask("POST", "/v1/catalog", summary(catalog))
    assert rest == b"", "the summaries of equal catalogs differ"
    said = [a for a in map(announcement, catalog) if a["ref"] == reference][0]

    seed = said["seed"]["digest"]
    _, body = ask("GET", "/v1/seeds/" + seed)
    assert sha256(body) == seed and len(body) == said["seed"]["size"]
    index = json.loads(body)
    assert index["schema"] == 1 and index["target"]["digest"] == said["target"]["digest"]
    me = json.dumps({"name": "stranger", "address": "127.0.0.1:1", "complete": False})
    _, body = ask("POST", f"/v1/swarms/{seed}/peers", me)
    assert isinstance(json.loads(body)["peers"], list)

    sums = [base64.b64decode(b["sums"]) for b in index["blobs"]]
    total = sum(len(s) // 32 for s in sums)
    wanted = set(range(total))
    held = haves(conn, seed, total)
    assert held == wanted, held
    chunks = {}
    while wanted:
        bitmap = bytearray((total + 63) // 64 * 8)
        for n in wanted:
            bitmap[n // 8] |= 1 << n % 8
        if len(wanted) % 2:  # by number and by the other side's choice
            answer, frame = ask("GET", f"/v1/swarms/{seed}/chunks/{min(wanted)}")
        else:
            answer, frame = ask("POST", f"/v1/swarms/{seed}/chunks", bytes(bitmap))
        assert answer.status == 200, answer.status
        n = int(answer.headers["Seeder-Chunk"])
        if answer.headers["Seeder-Encoding"] == "zstd":
            frame = subprocess.run(["zstd", "-dcq"], input=frame, capture_output=True, check=True).stdout
        chunks[n] = frame
        wanted.remove(n)
    n = 0
    for blob, s in zip(index["blobs"], sums):
        content = b""
        for i in range(0, len(s), 32):
            assert hashlib.sha256(chunks[n]).digest() == s[i:i + 32], f"chunk {n}"
            content += chunks[n]
            n += 1
        assert sha256(content) == blob["digest"] and len(content) == blob["bytes"], blob
    _, body = ask("GET", "/v1/state")
    states = {i["ref"]: i["state"] for i in json.loads(body)["images"]}
    print(f"{reference} is {states[reference]} there; {len(sums)} blobs of {total} chunks are as announced")


def haves(conn, seed, total):
    """The first message of a have stream, on the connection, which is opened anew."""
    conn.request("GET", f"/v1/swarms/{seed}/haves")
    stream = conn.getresponse()
    kind = stream.read(1)[0]
    size = 0
    for shift in range(0, 63, 7):
        byte = stream.read(1)[0]
        size |= (byte & 127) << shift
        if byte < 128:
            break
    assert kind == 1 and size == (total + 7) // 8
    bitmap = stream.read(size)
    conn.close()
    return {n for n in range(total) if bitmap[n // 8] >> n % 8 & 1}


main(*sys.argv[1:])
