{{- define "gatekey.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* At most 50 characters, so that suffixes such as "-headless" fit into a DNS label. */}}
{{- define "gatekey.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/*
Metadata of an object: (dict "root" $ "suffix" "-headless" "labels" dict "annotations" dict), all but
root optional. The chart's labels take precedence over those of the values.
*/}}
{{- define "gatekey.metadata" -}}
{{- $labels := merge (include "gatekey.labels" .root | fromYaml) (default dict .labels) (default dict .root.Values.commonLabels) -}}
{{- $annotations := merge (dict) (default dict .annotations) (default dict .root.Values.commonAnnotations) -}}
name: {{ include "gatekey.fullname" .root }}{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "gatekey.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "gatekey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The component excludes the pod of `helm test` from the Services. */}}
{{- define "gatekey.selector" -}}
app.kubernetes.io/name: {{ include "gatekey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "gatekey.testSelector" -}}
app.kubernetes.io/name: {{ include "gatekey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end }}

{{/* Renders a value as YAML and as a template: (list $ value). */}}
{{- define "gatekey.tpl" -}}
{{- tpl (toYaml (index . 1)) (index . 0) }}
{{- end }}

{{- define "gatekey.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "gatekey.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "gatekey.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{/* Not empty with SQLite. */}}
{{- define "gatekey.sqlite" -}}
{{- if eq .Values.database.engine "sqlite" }}true{{ end }}
{{- end }}

{{- define "gatekey.replicas" -}}
{{- if kindIs "invalid" .Values.replicaCount }}{{ ternary 1 3 (eq .Values.database.engine "sqlite") }}{{ else }}{{ int64 .Values.replicaCount }}{{ end }}
{{- end }}

{{- define "gatekey.gracePeriod" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{ add (int64 .Values.preStopSeconds) (int64 .Values.config.drainSeconds) 15 }}
{{- else -}}
{{ int64 .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{/* The address to listen on: (list $ port). */}}
{{- define "gatekey.listen" -}}
{{- $host := (index . 0).Values.listenHost }}
{{- if contains ":" $host }}{{ printf "[%s]:%d" $host (int64 (index . 1)) }}{{ else }}{{ printf "%s:%d" $host (int64 (index . 1)) }}{{ end }}
{{- end }}

{{- define "gatekey.servicePort" -}}
{{ int64 (default .Values.ports.grpc .Values.service.port) }}
{{- end }}

{{/*
The names that clients may use: those of both Services, and those of single pods behind the headless one.
*/}}
{{- define "gatekey.dnsNames" -}}
{{- $service := include "gatekey.fullname" . }}
{{- range $host := list $service (printf "%s-headless" $service) (printf "*.%s-headless" $service) }}
{{- range $suffix := list "" (printf ".%s" $.Release.Namespace) (printf ".%s.svc" $.Release.Namespace) (printf ".%s.svc.cluster.local" $.Release.Namespace) }}
- {{ printf "%s%s" $host $suffix | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Memory in MiB: 128 for the process, its connections and its database pools (23 when idle), 320 bytes for
each cached key, and the memory of each Argon2 hash that may run at once (at most one per core). Hashes of
older keys keep their cost, which is 19 MiB by default.
*/}}
{{- define "gatekey.memory" -}}
{{- $keys := div (add (mul (int64 .Values.config.cacheKeys) 320) 1048575) 1048576 }}
{{- $kib := regexFind "[0-9]+" .Values.config.argon2 | int64 }}
{{- $hash := max 19 (div (add $kib 1023) 1024) }}
{{- add 128 $keys (mul (int64 .Values.cores) $hash) }}
{{- end }}

{{- define "gatekey.resources" -}}
{{- if .Values.resources }}
{{- toYaml .Values.resources }}
{{- else -}}
requests:
  cpu: {{ .Values.cpuRequest }}
  memory: {{ include "gatekey.memory" . }}Mi
limits:
  cpu: {{ int64 .Values.cores }}
  memory: {{ include "gatekey.memory" . }}Mi
{{- end }}
{{- end }}

{{/* A probe: (list $ probe service). It uses gRPC health checks unless the values set another handler. */}}
{{- define "gatekey.probe" -}}
{{- $probe := deepCopy (index . 1) }}
{{- if not (or $probe.exec $probe.httpGet $probe.tcpSocket $probe.grpc) }}
{{- $grpc := dict "port" (int64 (index . 0).Values.ports.health) }}
{{- with index . 2 }}{{ $_ := set $grpc "service" . }}{{ end }}
{{- $_ := set $probe "grpc" $grpc }}
{{- end }}
{{- toYaml $probe }}
{{- end }}

{{- define "gatekey.adminTokenSecret" -}}
{{- default (include "gatekey.fullname" .) .Values.adminToken.existingSecret }}
{{- end }}

{{- define "gatekey.adminTokenKey" -}}
{{- if .Values.adminToken.existingSecret }}{{ .Values.adminToken.key }}{{ else }}admin-token{{ end }}
{{- end }}

{{- define "gatekey.pepperSecret" -}}
{{- default (include "gatekey.fullname" .) .Values.pepper.existingSecret }}
{{- end }}

{{- define "gatekey.pepperKey" -}}
{{- if .Values.pepper.existingSecret }}{{ .Values.pepper.key }}{{ else }}pepper{{ end }}
{{- end }}

{{/* cert-manager's Secret has a name of its own, so that it never replaces a generated certificate. */}}
{{- define "gatekey.tlsSecret" -}}
{{- $suffix := ternary "-cert-manager" "-tls" .Values.tls.certManager.enabled }}
{{- default (printf "%s%s" (include "gatekey.fullname" .) $suffix) .Values.tls.existingSecret }}
{{- end }}

{{/* Not empty if the chart generates the certificate. */}}
{{- define "gatekey.tlsGenerated" -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) (not .Values.tls.certManager.enabled) }}true{{ end }}
{{- end }}

{{- define "gatekey.encode" -}}
{{- urlquery . | replace "+" "%20" }}
{{- end }}

{{/* The URL without a password: with `database.host`, gatekey reads it from PGPASSWORD. */}}
{{- define "gatekey.databaseUrl" -}}
{{- with .Values.database }}
{{- $host := .host }}
{{- if hasPrefix "/" $host }}
{{- $host = include "gatekey.encode" $host }}
{{- else if contains ":" $host }}
{{- $host = printf "[%s]" $host }}
{{- end }}
{{- $query := list }}
{{- with .sslMode }}{{ $query = append $query (printf "sslmode=%s" .) }}{{ end }}
{{- with .sslRootCert }}{{ $query = append $query (printf "sslrootcert=%s" (include "gatekey.encode" .)) }}{{ end }}
{{- printf "postgres://%s@%s:%d/%s" (include "gatekey.encode" .user) $host (int64 .port) (include "gatekey.encode" .name) }}
{{- with $query }}?{{ join "&" . }}{{ end }}
{{- end }}
{{- end }}

{{/* The variables that both `gatekey migrate` and `gatekey serve` need. */}}
{{- define "gatekey.commonEnv" -}}
{{- $database := .Values.database -}}
- name: GATEKEY_DATABASE_URL
{{- if include "gatekey.sqlite" . }}
  value: sqlite:///var/lib/gatekey/gatekey.db
{{- else if $database.host }}
  value: {{ include "gatekey.databaseUrl" . | quote }}
{{- with $database.password.existingSecret }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $database.password.key }}
{{- end }}
{{- else }}
  valueFrom:
    secretKeyRef:
      name: {{ $database.existingSecret }}
      key: {{ $database.key }}
{{- end }}
- name: GATEKEY_LOG
  value: {{ .Values.config.log | quote }}
- name: GATEKEY_LOG_FORMAT
  value: {{ .Values.config.logFormat | quote }}
{{- end }}

{{- define "gatekey.commonMounts" -}}
{{- if include "gatekey.sqlite" . }}
- name: data
  mountPath: /var/lib/gatekey
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ include "gatekey.tpl" (list $ .) }}
{{- end }}
{{- end }}
