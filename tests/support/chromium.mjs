// Unpacks the browser of the package @sparticuz/chromium, with the libraries and fonts that it needs, into the
// folder that is named: node chromium.mjs FOLDER
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';

const folder = path.resolve(process.argv[2]);
fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(folder, { recursive: true });
process.env.TMPDIR = folder; // where the package unpacks to

const packed = fileURLToPath(new URL('../bin/', import.meta.resolve('@sparticuz/chromium')));
const { inflate } = await import('@sparticuz/chromium');
await Promise.all(['chromium.br', 'al2023.tar.br', 'fonts.tar.br'].map((name) => inflate(path.join(packed, name))));
fs.writeFileSync(
  path.join(folder, 'fonts.conf'),
  `<fontconfig><dir>${folder}/fonts</dir><cachedir>${folder}/fonts-cache</cachedir></fontconfig>\n`,
);
