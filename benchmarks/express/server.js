// What one would write in Node: an HMAC over the raw body, a key in Redis for each event.
const crypto = require("node:crypto");
const express = require("express");
const Redis = require("ioredis");

const { PORT, SECRET, WEBHOOK_PATH, REDIS_URL, PREFIX } = process.env;
const TOLERANCE = 300;
const KEPT = 60;

const redis = new Redis(REDIS_URL);
const app = express();

function isAuthentic(request) {
  const timestamp = request.get("X-Procore-Timestamp") || "";
  const signature = Buffer.from(request.get("X-Procore-Signature") || "", "hex");
  const hmac = crypto.createHmac("sha256", SECRET);
  const digest = hmac.update(timestamp + ".").update(request.body).digest();
  if (digest.length !== signature.length) return false;
  if (!crypto.timingSafeEqual(digest, signature)) return false;
  return Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE;
}

app.post(WEBHOOK_PATH, express.raw({ type: "*/*" }), async (request, response) => {
  if (!isAuthentic(request)) {
    return response.status(401).json({ error: "Invalid signature" });
  }
  const key = PREFIX + JSON.parse(request.body).id;
  if (await redis.exists(key)) {
    return response.json({ received: true, duplicate: true });
  }
  await redis.set(key, "1", "EX", KEPT);
  return response.json({ received: true });
});

redis.ping().then(() => app.listen(Number(PORT), "127.0.0.1"));
